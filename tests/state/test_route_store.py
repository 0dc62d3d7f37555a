from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway.errors import Conflict, StoreUnavailable
from gateway.prediction_id import MAX_REVISION
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.route_store import RouteStore, parse_document, revision_of

Run = Callable[[Any], Any]


def document(revision: int, weight: int = 100, name: str = "m") -> dict[str, Any]:
    return {"name": name, "revision": revision, "variants": [{"name": "v", "version": "1", "weight": weight}]}


async def stored(store: Store, name: str = "m") -> bytes | None:
    return (await RouteStore(store).read([name]))[name]


def test_a_route_that_was_never_written_is_nothing_at_revision_0(store: Store, run: Run) -> None:
    assert run(stored(store)) is None
    assert revision_of(None) == 0


def test_what_is_written_is_read_by_everybody(store: Store, run: Run) -> None:
    async def scenario() -> None:
        routes = RouteStore(store)
        await routes.write(document(1), replaces=None, actor="ann", reason="")
        await routes.write(document(1, name="n"), replaces=None, actor="ann", reason="")
        read = await RouteStore(store).read(["m", "absent", "n"])
        assert {name: parse_document(raw) for name, raw in read.items()} == {
            "m": document(1),
            "absent": None,
            "n": document(1, name="n"),
        }

    run(scenario())


def test_of_two_writers_at_once_exactly_one_wins(store_url: str, run: Run) -> None:
    async def write(routes: RouteStore, number: int, before: bytes | None) -> bool:
        try:
            await routes.write(document(1, number), replaces=before, actor=f"writer {number}", reason="")
        except Conflict:
            return False
        return True

    async def scenario() -> None:
        clients = [connect(store_url) for _ in range(8)]
        tables = [RouteStore(client) for client in clients]
        before = await stored(clients[0])
        won = await asyncio.gather(*(write(table, number, before) for number, table in enumerate(tables)))
        assert won.count(True) == 1
        winner = won.index(True)
        assert parse_document(await stored(clients[0])) == document(1, winner)
        assert [entry.actor for entry in await tables[0].history("m", 10)] == [f"writer {winner}"]
        for client in clients:
            await client.aclose()

    run(scenario())


def test_a_stale_writer_is_refused_and_changes_nothing(store: Store, run: Run) -> None:
    async def scenario() -> None:
        routes = RouteStore(store)
        await routes.write(document(1), replaces=None, actor="ann", reason="")
        first = await stored(store)
        await routes.write(document(2, 7), replaces=first, actor="bob", reason="")
        for stale in (None, first, b"junk"):
            with pytest.raises(Conflict, match="'m' was changed meanwhile; it is at revision 2"):
                await routes.write(document(3), replaces=stale, actor="eve", reason="")
        assert parse_document(await stored(store)) == document(2, 7)
        assert len(await routes.history("m", 10)) == 2

    run(scenario())


JUNK = [
    b"",
    b"not json",
    b"[]",
    b"7",
    b"\xff\xfe\x00",
    b"{}",
    b'{"revision": true}',
    b'{"revision": "7"}',
    b'{"revision": null}',
    b'{"revision": 0}',
    b'{"revision": -3}',
    b'{"revision": 1.5}',
    b'{"revision": 7.0}',
    b'{"revision": 99999999999}',
    # JSON to the store's own parser, not to ours.
    b'{"revision": 5, "x": NaN}',
    b'{"revision": 0x10}',
    b'{"revision": 5, "x": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
]


@pytest.mark.parametrize("junk", JUNK)
def test_a_document_that_is_no_route_counts_as_revision_0_and_can_be_replaced(
    junk: bytes, store: Store, run: Run
) -> None:
    async def scenario() -> None:
        routes = RouteStore(store)
        await store.set(keys.route("m"), junk)
        raw = await stored(store)
        assert raw == junk
        assert revision_of(raw) == 0
        await routes.write(document(1), replaces=raw, actor="ann", reason="repair")
        assert parse_document(await stored(store)) == document(1)
        (entry,) = await routes.history("m", 10)
        assert entry.before == parse_document(junk)

    run(scenario())


@pytest.mark.parametrize("revision", [1, 7, MAX_REVISION])
def test_a_document_edited_by_hand_keeps_the_revision_it_says(revision: int) -> None:
    assert revision_of(orjson.dumps({"revision": revision, "anything": "else"})) == revision


def test_every_change_is_kept_with_who_when_why_and_what_was_before(store: Store, run: Run) -> None:
    async def scenario() -> None:
        routes = RouteStore(store)
        seconds, microseconds = await store.time()
        for revision in range(1, 4):
            await routes.write(
                document(revision, revision),
                replaces=await stored(store),
                actor=f"ann{revision}@höst",
                reason="why not\n{}",
            )
        newest, middle, oldest = await routes.history("m", 10)
        assert [entry.revision for entry in (newest, middle, oldest)] == [3, 2, 1]
        assert (newest.actor, newest.reason) == ("ann3@höst", "why not\n{}")
        assert (newest.before, newest.document) == (document(2, 2), document(3, 3))
        assert oldest.before is None
        assert 0 <= oldest.changed_at - (seconds + microseconds / 1e6 - 0.001) < 10
        assert [entry.revision for entry in await routes.history("m", 2)] == [3, 2]
        assert await routes.history("other", 10) == []

    run(scenario())


def test_what_others_put_into_the_audit_stream_is_passed_over(store: Store, run: Run) -> None:
    async def scenario() -> None:
        await store.xadd(keys.audit("m"), {"hello": "world"})
        await RouteStore(store).write(document(1), replaces=None, actor="ann", reason="")
        await store.xadd(keys.audit("m"), {"revision": "x", "actor": b"\xff", "reason": "", "document": "[]"})
        assert [entry.actor for entry in await RouteStore(store).history("m", 10)] == ["ann"]

    run(scenario())


def test_a_notice_is_yielded_at_once_long_before_the_poll(store: Store, store_url: str, run: Run) -> None:
    async def scenario() -> None:
        changes = RouteStore(store).changes(poll_seconds=60.0)
        await anext(changes)
        other = connect(store_url)
        # The confirmation of the subscription may count as a change; a pending step is one that waits.
        step = asyncio.ensure_future(anext(changes))
        await asyncio.wait([step], timeout=0.3)
        if step.done():
            step = asyncio.ensure_future(anext(changes))
        assert not (await asyncio.wait([step], timeout=0.2))[0]
        await RouteStore(other).write(document(1), replaces=None, actor="ann", reason="")
        async with asyncio.timeout(2.0):
            await step
        await changes.aclose()
        await other.aclose()

    run(scenario())


def test_without_a_notice_a_change_is_looked_for_at_every_poll(store: Store, run: Run) -> None:
    async def scenario() -> None:
        changes = RouteStore(store).changes(poll_seconds=0.01)
        async with asyncio.timeout(5.0):
            for _ in range(5):
                await anext(changes)
        await changes.aclose()

    run(scenario())


def test_a_store_that_is_not_there_is_unavailable(run: Run) -> None:
    async def scenario() -> None:
        client = connect("redis://127.0.0.1:1")
        routes = RouteStore(client)
        with pytest.raises(StoreUnavailable):
            await routes.read(["m"])
        with pytest.raises(StoreUnavailable):
            await routes.write(document(1), replaces=None, actor="", reason="")
        with pytest.raises(StoreUnavailable):
            await routes.history("m", 1)
        with pytest.raises(StoreUnavailable):
            await anext(routes.changes(1.0))
        await client.aclose()

    run(scenario())
