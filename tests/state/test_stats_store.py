import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.stats_store import COUNTERS, DEAD_LETTER_FIELD_BYTES, NotOurs, OpenWindow, StatsStore
from gateway.stats.performance import Performance
from gateway.stats.verdict import Status, Verdict

Run = Callable[[Any], Any]
PREDICTIONS, FEEDBACK, WINDOW = keys.predictions("m"), keys.feedback("m"), keys.window("m", "1")


async def deliver(store: Store, stream: str, consumer: str, count: int = 1) -> list[bytes]:
    """Ids of entries that are now pending for the consumer."""
    if not await store.exists(stream):
        await store.xgroup_create(stream, keys.GROUP, id="0", mkstream=True)
    for _ in range(count):
        await store.xadd(stream, {"x": "1"})
    reply: Any = await store.xreadgroup(keys.GROUP, consumer, {stream: ">"}, count=count)
    return [id_ for id_, _ in reply[0][1]]


async def commit(
    stats: StatsStore, ids: list[bytes], *, consumer: str = "one", base: str = "", fresh: str = "w1", part: str = "p"
) -> OpenWindow:
    merged, delta = f"merged {part}".encode(), f"delta {part}".encode()
    return await stats.commit_window(
        "m",
        "1",
        consumer=consumer,
        base=base,
        fresh=fresh,
        merged=merged,
        delta=delta,
        rows=10,
        ids=ids,
        now=1000.5,
    )


def verdict(closed: float = 1.0, status: Status = Status.OK) -> Verdict:
    return Verdict(model="m", version="1", status=status, opened=0.0, closed=closed, rows=10)


async def pending(store: Store, stream: str) -> int:
    reply: Any = await store.xpending(stream, keys.GROUP)
    return int(reply["pending"])


def test_the_first_commit_opens_a_window_and_acknowledges(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        ids = await deliver(store, PREDICTIONS, "one", 3)
        assert await commit(stats, ids) == OpenWindow("w1", 1000.5, 10)
        assert await pending(store, PREDICTIONS) == 0
        assert await stats.progress("m", "1") == OpenWindow("w1", 1000.5, 10)
        assert await stats.part("m", "1", "one") == ("w1", b"delta p")
        assert await stats.counters("m") == dict.fromkeys(COUNTERS, 0) | {"entries": 3, "rows": 10}
        assert 0 < await store.ttl(WINDOW) <= keys.WINDOW_TTL_SECONDS

    run(body())


def test_a_commit_to_the_same_window_replaces_the_part(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        await commit(stats, await deliver(store, PREDICTIONS, "one"))
        window = await commit(stats, await deliver(store, PREDICTIONS, "one"), base="w1", fresh="w2", part="q")
        assert window == OpenWindow("w1", 1000.5, 20)
        assert await stats.part("m", "1", "one") == ("w1", b"merged q")

    run(body())


def test_a_commit_after_the_window_closed_opens_another_with_the_new_rows_alone(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        window = await commit(stats, await deliver(store, PREDICTIONS, "one"))
        assert await stats.close_window(window, verdict())
        second = await commit(stats, await deliver(store, PREDICTIONS, "one"), base="w1", fresh="w2", part="q")
        assert second == OpenWindow("w2", 1000.5, 10)
        assert await stats.part("m", "1", "one") == ("w2", b"delta q")

    run(body())


def test_two_collectors_share_a_window(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        await commit(stats, await deliver(store, PREDICTIONS, "one"), part="a")
        window = await commit(stats, await deliver(store, PREDICTIONS, "two"), consumer="two", fresh="w2", part="b")
        parts = await stats.parts("m", "1")
        assert parts is not None
        assert parts.window == window == OpenWindow("w1", 1000.5, 20)
        assert parts.blobs == {"one": b"delta a", "two": b"delta b"}

    run(body())


def test_entries_that_were_committed_or_taken_over_are_not_committed_again(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        first, second = await deliver(store, PREDICTIONS, "one", 2)
        await commit(stats, [first])
        with pytest.raises(NotOurs):
            await commit(stats, [second, first], base="w1", part="again")
        await store.xclaim(PREDICTIONS, keys.GROUP, "two", 0, [second])
        with pytest.raises(NotOurs):
            await commit(stats, [second], base="w1", part="again")
        assert await stats.part("m", "1", "one") == ("w1", b"delta p")
        assert await pending(store, PREDICTIONS) == 1
        with pytest.raises(NotOurs):
            await stats.skip("m", consumer="one", rows=1, ids=[second])
        assert (await stats.counters("m"))["rows"] == 10

    run(body())


def test_a_window_that_changed_is_not_closed(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        window = await commit(stats, await deliver(store, PREDICTIONS, "one"))
        await commit(stats, await deliver(store, PREDICTIONS, "one"), base="w1")
        assert not await stats.close_window(window, verdict())
        assert await stats.latest("m", "1") is None
        assert await stats.progress("m", "1") == OpenWindow("w1", 1000.5, 20)

    run(body())


def test_a_window_is_published_once(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        window = await commit(stats, await deliver(store, PREDICTIONS, "one"))
        closed = await asyncio.gather(*(stats.close_window(window, verdict(n)) for n in range(5)))
        assert sum(closed) == 1
        assert len(await stats.history("m")) == 1
        assert await stats.progress("m", "1") is None
        assert await stats.parts("m", "1") is None
        assert await stats.part("m", "1", "one") is None
        assert (await stats.counters("m"))["windows_closed"] == 1
        assert 0 < await store.ttl(keys.verdict("m", "1")) <= keys.VERDICT_TTL_SECONDS

    run(body())


def test_history_is_oldest_first_and_limited_to_the_newest(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        for number, status in enumerate((Status.OK, Status.WARNING, Status.ALARM)):
            assert await stats.announce(verdict(number, status))
        assert [v.status for v in await stats.history("m")] == ["ok", "warning", "alarm"]
        assert [v.status for v in await stats.history("m", limit=2)] == ["warning", "alarm"]
        assert await stats.history("m", since=4e9) == []
        latest = await stats.latest("m", "1")
        assert latest is not None
        assert latest.status is Status.ALARM

    run(body())


def test_the_same_status_is_announced_once(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        assert await stats.announce(verdict(1, Status.NO_REFERENCE))
        assert not await stats.announce(verdict(2, Status.NO_REFERENCE))
        assert [v.closed for v in await stats.history("m")] == [1]

    run(body())


def test_a_verdict_of_another_release_is_skipped(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        await stats.announce(verdict())
        await store.set(keys.verdict("m", "1"), b'{"status": "ok", "colour": "blue"}')
        await store.xadd(keys.verdicts("m"), {"verdict": b"?"})
        assert await stats.latest("m", "1") is None
        assert len(await stats.history("m")) == 1

    run(body())


def test_labels_add_up_by_version_and_variant(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        counts = [
            Performance("1", "stable", labelled=3, correct=2),
            Performance("2", 'can"ary', labelled=2, valued=2, absolute_error=1.5, squared_error=1.25),
        ]
        for _ in range(2):
            ids = await deliver(store, FEEDBACK, "one", 5)
            await stats.commit_feedback("m", consumer="one", counts=counts, ids=ids)
        with pytest.raises(NotOurs):
            await stats.commit_feedback("m", consumer="one", counts=counts, ids=ids)
        stable, canary = await stats.performance("m")
        assert stable == Performance("1", "stable", labelled=6, correct=4)
        assert stable.accuracy == pytest.approx(2 / 3)
        assert (stable.mean_absolute_error, stable.root_mean_squared_error) == (None, None)
        assert canary == Performance("2", 'can"ary', labelled=4, valued=4, absolute_error=3.0, squared_error=2.5)
        assert canary.accuracy is None
        assert canary.mean_absolute_error == 0.75
        assert canary.root_mean_squared_error == pytest.approx(0.790569)
        assert await pending(store, FEEDBACK) == 0
        assert (await stats.counters("m"))["labels"] == 10
        assert 0 < await store.ttl(keys.performance("m")) <= keys.PERFORMANCE_TTL_SECONDS

    run(body())


def test_a_dead_letter_is_acknowledged_and_kept_in_part(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        (id_,) = await deliver(store, PREDICTIONS, "one")
        fields = {b"data": b"x" * 100_000} | {b"f%d" % n: b"" for n in range(100)}
        for _ in range(2):
            await stats.dead_letter("m", PREDICTIONS, id_, fields, "no sense")
        entries: Any = await store.xrange(keys.dead_letters("m"))
        assert len(entries) == 1
        kept = entries[0][1]
        assert (kept[b"stream"], kept[b"id"], kept[b"reason"]) == (PREDICTIONS.encode(), id_, b"no sense")
        assert len(kept[b"data"]) == DEAD_LETTER_FIELD_BYTES
        assert len(kept) == 3 + 16
        assert await pending(store, PREDICTIONS) == 0
        assert (await stats.counters("m"))["dead_letters"] == 1

    run(body())


def test_skipped_rows_are_acknowledged_and_counted(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        ids = await deliver(store, PREDICTIONS, "one", 2)
        await stats.skip("m", consumer="one", rows=7, ids=ids)
        await stats.count("m", "entries_lost", 4)
        counters = await stats.counters("m")
        assert (counters["entries"], counters["rows_unwatched"], counters["entries_lost"]) == (2, 7, 4)
        assert await pending(store, PREDICTIONS) == 0

    run(body())


def test_nothing_lasts_for_ever_that_is_not_meant_to(store: Store, run: Run) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        window = await commit(stats, await deliver(store, PREDICTIONS, "one"))
        await stats.close_window(window, verdict())
        await commit(stats, await deliver(store, PREDICTIONS, "one"))
        ids = await deliver(store, FEEDBACK, "one", 2)
        await stats.commit_feedback("m", consumer="one", counts=[Performance("1", "", labelled=1)], ids=ids[:1])
        await stats.dead_letter("m", FEEDBACK, ids[1], {b"x": b"1"}, "why")
        names: Any = await store.keys()
        lasting = {name.decode().split("}:")[1].split(":")[0] for name in names if await store.ttl(name) == -1}
        assert lasting <= keys.PERMANENT.keys()

    run(body())


def test_no_store_is_an_outage(run: Run) -> None:
    async def body() -> None:
        store = connect("unix:///nowhere/valkey.sock")
        stats = StatsStore(store)
        window = OpenWindow("w", 0.0, 1)
        for call in (stats.latest("m", "1"), stats.history("m"), stats.close_window(window, verdict())):
            with pytest.raises(StoreUnavailable):
                await call
        await store.aclose()

    run(body())
