"""The collector, step by step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.collector.worker import Cadence
from gateway.protocol.log_codec import DATA, META, encode
from gateway.runtime.manifest import LABEL_COLUMN
from gateway.state import keys
from gateway.state.client import Store
from gateway.state.stats_store import NotOurs, StatsStore
from gateway.stats.performance import Performance
from gateway.stats.verdict import State, Status
from gateway.types import string_array
from tests.collector.loans import entry, log_entry, publish, tensors
from tests.collector.test_feedback import FIELDS
from tests.collector.working import FEEDBACK, PREDICTIONS, Clock, Run, drain, pending, rows_of, send, started


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish(tmp_path)
    return tmp_path


def test_traffic_like_the_reference_is_ok(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock, stats = Clock(), StatsStore(store)
        collector = await started(store, models, clock=clock)
        await send(store, *(entry(seed, 60) for seed in range(1, 11)))
        await drain(collector)
        await collector.commit()
        assert await pending(store) == 0
        assert await collector.close_windows() == []
        clock.now += 60
        (verdict,) = await collector.close_windows()
        assert verdict == await stats.latest("loans", "1")
        assert (verdict.status, verdict.rows, verdict.reference_rows) == (Status.OK, 600, 5_000)
        assert (verdict.opened, verdict.closed) == (clock.now - 60, clock.now)
        assert {feature.n for feature in verdict.features} == {600}
        assert LABEL_COLUMN in {feature.name for feature in verdict.features}
        assert await stats.progress("loans", "1") is None
        counters = await stats.counters("loans")
        assert (counters["entries"], counters["rows"], counters["windows_closed"]) == (10, 600, 1)

    run(body())


def test_a_window_waits_for_enough_rows(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock = Clock()
        collector = await started(store, models, clock=clock)
        await send(store, entry(1, 499))
        await drain(collector)
        await collector.commit()
        clock.now += 3600
        assert await collector.close_windows() == []
        await send(store, entry(2, 1))
        await drain(collector)
        await collector.commit()
        assert [verdict.rows for verdict in await collector.close_windows()] == [500]

    run(body())


def test_a_shift_that_persists_becomes_an_alarm(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock = Clock()
        collector = await started(store, models, clock=clock)
        statuses = []
        for seed in range(1, 4):
            await send(store, entry(seed, 600, shift=1.0))
            await drain(collector)
            await collector.commit()
            clock.now += 60
            (verdict,) = await collector.close_windows()
            statuses.append(verdict.status)
            states = {feature.name: feature.state for feature in verdict.features}
            assert states.pop("amount") is State.DRIFT
            assert set(states.values()) == {State.OK}
        assert statuses == [Status.WARNING, Status.ALARM, Status.ALARM]
        assert len(await StatsStore(store).history("loans")) == 3

    run(body())


def test_two_collectors_share_the_work_and_publish_each_window_once(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock, stats = Clock(), StatsStore(store)
        cadence = Cadence(commit=0.0, block=0.01, read_entries=1)
        pair = [await started(store, models, name, clock=clock, cadence=cadence) for name in ("one", "two")]
        for window in range(2):
            await send(store, *(entry(100 * window + n, 50) for n in range(1, 21)))
            for _ in range(10):
                for collector in pair:
                    assert await collector.read() == 1
                    await collector.commit()
            parts = await stats.parts("loans", "1")
            assert parts is not None
            assert parts.blobs.keys() == {"one", "two"}
            clock.now += 60
            published = await asyncio.gather(*(collector.close_windows() for collector in pair))
            assert [verdict.rows for verdicts in published for verdict in verdicts] == [1000]
        assert [verdict.rows for verdict in await stats.history("loans")] == [1000, 1000]
        assert {feature.n for verdict in await stats.history("loans") for feature in verdict.features} == {1000}

    run(body())


def test_what_a_dead_collector_held_is_taken_over_and_counts_once(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        dead = await started(store, models, "dead")
        await send(store, entry(1, 30), entry(2, 40))
        await drain(dead)
        await dead.commit()
        await send(store, entry(3, 50))
        await drain(dead)
        alive = await started(store, models, "alive", cadence=Cadence(claim=0.0, claim_idle=0.0))
        assert await alive.claim_if_due() == 1
        await alive.commit()
        assert await rows_of(stats) == 120
        with pytest.raises(NotOurs):
            await dead.commit()
        await dead.resume()
        await drain(dead)
        await dead.commit()
        assert await rows_of(stats) == 120
        assert await pending(store) == 0

    run(body())


def test_a_restarted_collector_goes_on_where_it_was(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock, stats = Clock(), StatsStore(store)
        first = await started(store, models, clock=clock)
        await send(store, entry(1, 300))
        await drain(first)
        await first.commit()
        await send(store, entry(2, 300))
        await drain(first)
        second = await started(store, models, clock=clock)
        await drain(second)
        await second.commit()
        clock.now += 60
        (verdict,) = await second.close_windows()
        assert {feature.n for feature in verdict.features} == {600}
        assert (await stats.counters("loans"))["rows"] == 600

    run(body())


MISFITS: list[dict[bytes, bytes]] = [
    {b"x": b"y"},
    {META: b"{}", DATA: b""},
    entry(1, 5, model="cards"),
    encode(log_entry({"numbers": np.zeros((5, 1), np.float32)}, tensors(1, 5)[1])),
    encode(log_entry({"numbers": np.zeros((0, 2), np.float32)}, {})),
    encode(
        log_entry(tensors(1, 5)[0] | {"numbers": string_array(["?"] * 10, (5, 2))}, tensors(1, 5)[1]),
    ),
]


def test_entries_that_do_not_fit_are_set_aside_and_do_not_stop_the_others(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        collector = await started(store, models)
        good_text = tensors(1, 2)[0] | {"numbers": string_array(["1", "2"] * 2, (2, 2))}
        await send(store, entry(1, 7), *MISFITS, encode(log_entry(good_text, tensors(1, 2)[1])), entry(2, 7))
        await drain(collector)
        await collector.commit()
        assert await pending(store) == 0
        assert await rows_of(stats) == 16
        counters = await stats.counters("loans")
        assert (counters["dead_letters"], counters["entries"]) == (len(MISFITS), 3)
        letters: Any = await store.xrange(keys.dead_letters("loans"))
        assert len(letters) == len(MISFITS)
        assert all(fields[b"reason"] for _, fields in letters)

    run(body())


def test_a_version_without_a_reference_is_said_once(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        publish(models, version="2", name="cards", with_reference=False)
        pair = [await started(store, models, name) for name in ("one", "two")]
        for collector in pair * 2:
            await send(store, entry(1, 20, version="9"))
            await send(store, entry(1, 20, model="cards", version="2"), stream=keys.predictions("cards"))
            await drain(collector)
            await collector.commit()
        for model, version, why in (("loans", "9", "no manifest"), ("cards", "2", "the manifest names no reference")):
            (verdict,) = await stats.history(model)
            assert (verdict.version, verdict.status, verdict.reasons) == (version, Status.NO_REFERENCE, (why,))
            assert (await stats.counters(model))["rows_unwatched"] == 80
        assert await pending(store) == 0

    run(body())


def test_a_version_that_is_published_again_with_another_reference_is_judged_anew(
    store: Store, run: Run, models: Path
) -> None:
    async def body() -> None:
        clock, stats = Clock(), StatsStore(store)
        collector = await started(store, models, clock=clock)
        await send(store, entry(1, 600))
        await drain(collector)
        (models / "loans" / "1" / "manifest.json").unlink()
        (models / "loans" / "1").rename(models / "old")
        publish_again = models / "again"
        folder = publish(publish_again)
        folder.rename(models / "loans" / "1")
        await send(store, entry(2, 600))
        await drain(collector)
        await collector.commit()
        clock.now += 60
        assert await rows_of(stats) == 1200
        (verdict,) = await collector.close_windows()
        assert verdict.rows == 1200

    run(body())


def test_a_window_of_another_reference_is_closed_without_a_judgement(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        clock = Clock()
        collector = await started(store, models, clock=clock)
        await send(store, entry(1, 600))
        await drain(collector)
        await collector.commit()
        await store.hset(keys.window("loans", "1"), "sketch:stranger", b"junk")
        clock.now += 60
        (verdict,) = await collector.close_windows()
        assert verdict.status is Status.INSUFFICIENT
        assert "another reference" in verdict.reasons[0]

    run(body())


def test_a_part_that_cannot_be_read_is_started_anew(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        await store.hset(keys.window("loans", "1"), mapping={"id": "w", "opened": 1, "rows": 5, "sketch:one": b"junk"})
        collector = await started(store, models)
        await send(store, entry(1, 10))
        await drain(collector)
        await collector.commit()
        assert await rows_of(StatsStore(store)) == 15

    run(body())


def test_labels_are_counted_and_malformed_ones_set_aside(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stats = StatsStore(store)
        collector = await started(store, models)
        wrong = FIELDS | {b"label": b"0"}
        await send(store, FIELDS, wrong, FIELDS, {b"x": b"y"}, FIELDS | {b"variant": b"canary"}, stream=FEEDBACK)
        await drain(collector)
        await collector.commit()
        assert await stats.performance("loans") == [
            Performance("1", "canary", labelled=1, correct=1),
            Performance("1", "stable", labelled=3, correct=2),
        ]
        counters = await stats.counters("loans")
        assert (counters["labels"], counters["dead_letters"]) == (4, 1)
        assert await pending(store, FEEDBACK) == 0

    run(body())


def test_trimmed_entries_are_counted_as_lost(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        collector = await started(store, models)
        await send(store, entry(1, 10), entry(2, 10))
        await drain(collector)
        await store.xtrim(PREDICTIONS, maxlen=0)
        await collector.resume()
        await drain(collector)
        await collector.commit()
        assert (await StatsStore(store).counters("loans"))["entries_lost"] == 2
        assert await pending(store) == 0

    run(body())


def test_a_model_that_appears_later_is_followed(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        collector = await started(store, models)
        publish(models, name="cards", version="1")
        await send(store, entry(1, 10, model="cards"), stream=keys.predictions("cards"))
        await collector.rescan()
        await drain(collector)
        await drain(collector)
        await collector.commit()
        assert await StatsStore(store).progress("cards", "1") is not None

    run(body())
