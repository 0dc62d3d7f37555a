"""The collector as it runs: stopped, without models, and through outages of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.collector.worker import Cadence, Collector
from gateway.errors import StoreUnavailable
from gateway.state.client import Store, connect
from gateway.state.embedded import EmbeddedStore
from gateway.state.stats_store import StatsStore
from tests.collector.loans import entry, publish
from tests.collector.working import PREDICTIONS, Run, pending, rows_of, send, until


@pytest.fixture
def models(tmp_path: Path) -> Path:
    publish(tmp_path)
    return tmp_path


def test_run_commits_what_it_holds_when_it_is_stopped(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stop, stats = asyncio.Event(), StatsStore(store)
        collector = Collector(store, models, "one", cadence=Cadence(commit=3600, block=0.01))
        task = asyncio.create_task(collector.run(stop))
        await send(store, entry(1, 25))

        async def is_delivered() -> bool:
            return (
                bool(await store.exists(PREDICTIONS))
                and bool(await store.xinfo_groups(PREDICTIONS))
                and (await pending(store) == 1)
            )

        await until(is_delivered)
        assert await rows_of(stats) == 0
        stop.set()
        await task
        assert await rows_of(stats) == 25
        assert await pending(store) == 0

    run(body())


def test_run_without_models_waits_for_some(store: Store, run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        stop = asyncio.Event()
        cadence = Cadence(commit=0.0, block=0.01, rescan=0.0)
        task = asyncio.create_task(Collector(store, tmp_path, "one", cadence=cadence).run(stop))
        await send(store, entry(1, 25))
        publish(tmp_path)
        stats = StatsStore(store)

        async def is_committed() -> bool:
            return await rows_of(stats) == 25

        await until(is_committed)
        stop.set()
        await task

    run(body())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A store that the test may stop and start."""
    server = EmbeddedStore(tmp_path / "data")
    server.start()
    yield server
    server.stop()


def test_an_outage_of_the_store_loses_nothing_and_is_logged_once(
    server: EmbeddedStore, run: Run, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        store, stop = connect(server.url), asyncio.Event()
        stats = StatsStore(store)
        cadence = Cadence(commit=0.0, block=0.01)
        await send(store, entry(1, 25))
        task = asyncio.create_task(Collector(store, models, "one", cadence=cadence).run(stop))

        async def rows_reach(rows: int) -> bool:
            try:
                return await rows_of(stats) == rows
            except StoreUnavailable:
                return False

        await until(lambda: rows_reach(25))
        await asyncio.to_thread(server.stop)

        async def is_noticed() -> bool:
            return "retrying" in caplog.text

        await until(is_noticed)
        await asyncio.to_thread(server.start)
        await send(store, entry(2, 30))
        await until(lambda: rows_reach(55))
        stop.set()
        await task
        await store.aclose()

    run(body())
    messages = [record.getMessage() for record in caplog.records if record.name == "gateway.collector.worker"]
    assert len(messages) == 2
    assert "retrying" in messages[0]
    assert messages[1] == "the store answers again"


def test_a_store_that_came_back_empty_is_used_as_it_is(store: Store, run: Run, models: Path) -> None:
    async def body() -> None:
        stop, stats = asyncio.Event(), StatsStore(store)
        cadence = Cadence(commit=0.0, block=0.01)
        task = asyncio.create_task(Collector(store, models, "one", cadence=cadence).run(stop))
        await send(store, entry(1, 25))

        async def rows_reach(rows: int) -> bool:
            return await rows_of(stats) == rows

        await until(lambda: rows_reach(25))
        await store.flushall()
        await send(store, entry(2, 30))
        await until(lambda: rows_reach(30))
        stop.set()
        await task

    run(body())
