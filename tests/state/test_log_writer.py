from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.log_writer import LogWriter

Run = Callable[[Any], Any]


def writer(store: Store, prediction_bytes: int = 10**9, feedback_entries: int = 1_000) -> LogWriter:
    return LogWriter(store, prediction_bytes=prediction_bytes, feedback_entries=feedback_entries)


async def entries_of(store: Store, key: str) -> list[dict[bytes, bytes]]:
    entries: Any = await store.xrange(key)
    return [fields for _, fields in entries]


async def length(store: Store, key: str) -> int:
    return int(await store.xlen(key))


def test_entries_arrive_in_order_in_the_stream_of_their_model(store: Store, run: Run) -> None:
    async def scenario() -> None:
        entries = [(name, {b"n": str(number).encode()}) for number, name in enumerate("aabab")]
        await writer(store).append_predictions(entries)
        for model, expected in (("a", [b"0", b"1", b"3"]), ("b", [b"2", b"4"])):
            assert [fields[b"n"] for fields in await entries_of(store, keys.predictions(model))] == expected

    run(scenario())


def test_bytes_are_bytes_to_the_store(store: Store, run: Run) -> None:
    data = bytes(range(256))

    async def scenario() -> None:
        await writer(store).append_predictions([("m", {b"meta": b"{}", b"data": data})])
        assert await entries_of(store, keys.predictions("m")) == [{b"meta": b"{}", b"data": data}]

    run(scenario())


def test_a_prediction_stream_takes_about_as_much_room_as_it_may(store: Store, run: Run) -> None:
    allowed, entry = 200_000, {b"data": b"x" * 1_000}

    async def scenario() -> None:
        log = writer(store, prediction_bytes=allowed)
        for _ in range(20):
            await log.append_predictions([("m", entry)] * 50)
        size = await length(store, keys.predictions("m")) * 1_004
        # The cap is approximate: the store frees whole nodes, of at most a hundred entries.
        assert 0.8 * allowed <= size <= 2 * allowed

    run(scenario())


def test_one_label_for_each_prediction_is_kept(store: Store, run: Run) -> None:
    async def scenario() -> None:
        log = writer(store)
        assert await log.append_label("m", "id-1", {"label": "1"})
        assert not await log.append_label("m", "id-1", {"label": "0"})
        assert await log.append_label("m", "id-2", {"label": "0"})
        assert await log.append_label("n", "id-1", {"label": "0"})
        assert await entries_of(store, keys.feedback("m")) == [{b"label": b"1"}, {b"label": b"0"}]
        assert 0 < await store.ttl(keys.label("m", "id-1")) <= keys.LABEL_TTL_SECONDS

    run(scenario())


def test_a_label_sent_many_times_at_once_is_counted_once(store: Store, run: Run) -> None:
    async def scenario() -> None:
        log = writer(store)
        taken = await asyncio.gather(*(log.append_label("m", "id", {"label": str(n)}) for n in range(20)))
        assert taken.count(True) == 1
        assert await length(store, keys.feedback("m")) == 1

    run(scenario())


def test_the_feedback_stream_is_capped(store: Store, run: Run) -> None:
    async def scenario() -> None:
        log = writer(store, feedback_entries=100)
        for number in range(600):
            await log.append_label("m", str(number), {"label": "1"})
        assert await length(store, keys.feedback("m")) <= 200

    run(scenario())


def test_without_the_store_both_say_so(run: Run) -> None:
    async def scenario() -> None:
        client = connect("redis://127.0.0.1:1")
        log = writer(client)
        with pytest.raises(StoreUnavailable):
            await log.append_predictions([("m", {b"n": b"1"})])
        with pytest.raises(StoreUnavailable):
            await log.append_label("m", "id", {"label": "1"})
        await client.aclose()

    run(scenario())
