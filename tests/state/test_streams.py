from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.streams import Delivery, StreamReader

Run = Callable[[Any], Any]
A, B = keys.predictions("a"), keys.feedback("a")


async def append(store: Store, stream: str, *texts: str) -> list[bytes]:
    return [await store.xadd(stream, {"text": text}) for text in texts]  # type: ignore[misc]


async def texts(reader: StreamReader, count: int = 100) -> list[str]:
    delivery = await reader.read(count, 0.001)
    return sorted(entry.fields[b"text"].decode() for entry in delivery.entries)


async def caught_up(store: Store, consumer: str, *streams: str) -> StreamReader:
    """A reader that has nothing pending."""
    reader = StreamReader(store, consumer)
    await reader.follow(streams)
    assert await texts(reader) == []
    assert reader.has_caught_up
    return reader


def test_streams_that_do_not_exist_yet_are_followed(store: Store, run: Run) -> None:
    async def body() -> None:
        reader = await caught_up(store, "one", A, B)
        await append(store, A, "x", "y")
        await append(store, B, "z")
        assert await texts(reader) == ["x", "y", "z"]
        assert await texts(reader) == []

    run(body())


def test_entries_written_before_the_first_reader_are_read(store: Store, run: Run) -> None:
    async def body() -> None:
        await append(store, A, "early")
        assert await texts(await caught_up(store, "one", A)) == ["early"]

    run(body())


def test_a_second_reader_gets_other_entries(store: Store, run: Run) -> None:
    async def body() -> None:
        one, two = await caught_up(store, "one", A), await caught_up(store, "two", A)
        await append(store, A, *"abcd")
        assert await texts(one, 2) + await texts(two) == list("abcd")

    run(body())


def test_after_a_restart_what_was_not_acknowledged_comes_first(store: Store, run: Run) -> None:
    async def body() -> None:
        reader = await caught_up(store, "one", A)
        ids = await append(store, A, *"abc")
        assert await texts(reader) == list("abc")
        await store.xack(A, keys.GROUP, ids[0])
        again = StreamReader(store, "one")
        await again.follow([A])
        await append(store, A, "d")
        assert not again.has_caught_up
        assert [await texts(again, 1) for _ in range(4)] == [["b"], ["c"], [], ["d"]]

    run(body())


def test_rewinding_reads_pending_entries_again(store: Store, run: Run) -> None:
    async def body() -> None:
        reader = await caught_up(store, "one", A)
        await append(store, A, "a")
        assert await texts(reader) == ["a"]
        reader.rewind()
        await reader.follow([A])
        assert await texts(reader) == ["a"]

    run(body())


def test_pending_entries_that_were_trimmed_are_lost_and_acknowledged(store: Store, run: Run) -> None:
    async def body() -> None:
        reader = await caught_up(store, "one", A)
        ids = await append(store, A, *"ab")
        await texts(reader)
        await store.xdel(A, ids[0])
        reader.rewind()
        await reader.follow([A])
        delivery = await reader.read(10, 0.001)
        assert [entry.id for entry in delivery.entries] == [ids[1]]
        assert delivery.lost == {A: 1}
        pending: Any = await store.xpending(A, keys.GROUP)
        assert pending["pending"] == 1

    run(body())


def test_entries_of_a_dead_consumer_are_claimed_and_trimmed_ones_are_lost(store: Store, run: Run) -> None:
    async def body() -> None:
        dead, alive = await caught_up(store, "dead", A), await caught_up(store, "alive", A, B)
        ids = await append(store, A, *"ab")
        await texts(dead)
        await store.xdel(A, ids[0])
        assert await alive.claim(3600, 10) == Delivery([], {A: 1})
        delivery = await alive.claim(0, 10)
        assert [(entry.stream, entry.id) for entry in delivery.entries] == [(A, ids[1])]
        assert delivery.lost == {}

    run(body())


def test_consumers_that_are_long_gone_are_forgotten_unless_they_hold_something(store: Store, run: Run) -> None:
    async def body() -> None:
        await append(store, A, "a")
        holder = StreamReader(store, "holder", forget_after_seconds=-1.0)
        await holder.follow([A])
        assert await texts(holder) + await texts(holder) == ["a"]
        await caught_up(store, "idle", A)
        await holder.claim(3600, 10)
        names = [consumer["name"] for consumer in await store.xinfo_consumers(A, keys.GROUP)]
        assert names == [b"holder"]

    run(body())


def test_a_group_that_vanished_is_created_again(store: Store, run: Run) -> None:
    async def body() -> None:
        reader = await caught_up(store, "one", A, B)
        await store.flushall()
        assert await texts(reader) == []
        await append(store, A, "new")
        assert await texts(reader) == []
        assert await texts(reader) == ["new"]

    run(body())


def test_a_reader_without_streams_reads_nothing(store: Store, run: Run) -> None:
    assert run(StreamReader(store, "one").read(10, 0.001)).entries == []


def test_no_store_is_an_outage(run: Run) -> None:
    async def body() -> None:
        store = connect("unix:///nowhere/valkey.sock")
        with pytest.raises(StoreUnavailable):
            await StreamReader(store, "one").follow([A])
        await store.aclose()

    run(body())
