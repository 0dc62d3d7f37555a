"""A collector that is led step by step, and questions about what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gateway.collector.worker import Cadence, Collector
from gateway.state import keys
from gateway.state.client import Store
from gateway.state.stats_store import StatsStore

Run = Callable[[Any], Any]
PREDICTIONS, FEEDBACK = keys.predictions("loans"), keys.feedback("loans")

EAGER = Cadence(commit=0.0, block=0.01, claim=0.0)


class Clock:
    """Unix time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def send(store: Store, *entries: dict[bytes, bytes], stream: str = PREDICTIONS) -> None:
    for fields in entries:
        await store.xadd(stream, dict[Any, Any](fields))


async def started(
    store: Store, models: Path, consumer: str = "one", *, clock: Clock | None = None, cadence: Cadence = EAGER
) -> Collector:
    collector = Collector(store, models, consumer, cadence=cadence, clock=clock or Clock())
    await collector.resume()
    await collector.read()
    return collector


async def drain(collector: Collector) -> None:
    """Read until there is nothing left."""
    while await collector.read():
        pass


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """The test's time limit is the limit."""
    while not await condition():  # noqa: ASYNC110 -- what is waited for happens in another process
        await asyncio.sleep(0.005)


async def rows_of(stats: StatsStore, version: str = "1") -> int:
    window = await stats.progress("loans", version)
    return window.rows if window else 0


async def pending(store: Store, stream: str = PREDICTIONS) -> int:
    reply: Any = await store.xpending(stream, keys.GROUP)
    return int(reply["pending"])
