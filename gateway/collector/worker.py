"""The collector: reads what was served, keeps the windows, publishes verdicts and performance.

Any number of collectors share the work as one consumer group. Each may die at any point: what it had not committed is
still pending, and it or another one reads it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.collector.catalog import Catalog, ModelFolder
from gateway.collector.closing import WindowCloser
from gateway.collector.labels import LabelFolder
from gateway.collector.predictions import PredictionFolder
from gateway.errors import StoreUnavailable
from gateway.state import keys
from gateway.state.client import Store
from gateway.state.stats_store import LOST_ENTRIES, NotOurs, StatsStore
from gateway.state.streams import Delivery, Entry, StreamReader
from gateway.stats.verdict import DEFAULT_THRESHOLDS, Thresholds, Verdict

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the collector does what. Seconds, except where the name says otherwise."""

    commit: float = 1.0
    """Longest time that rows are held, and how often windows are looked at."""
    commit_rows: int = 50_000
    commit_entries: int = 2_000
    """Commit earlier with this much held: one script looks at every entry while the store does nothing else."""
    block: float = 0.5
    """Longest wait for new entries, and so for the end of `run` after `stop`."""
    read_entries: int = 256
    """Of each stream in one read."""
    rescan: float = 10.0
    """How soon a new model on disk is followed."""
    claim: float = 30.0
    claim_idle: float = 60.0
    """Entries that a consumer has kept for this long are taken over; far above `commit`, so it must be dead."""


async def run(store: Store, models: Path, consumer: str, stop: asyncio.Event, *, cadence: Cadence = Cadence()) -> None:
    """Collect until `stop` is set. `consumer` names this process among the collectors and must be unique among them."""
    await Collector(store, models, consumer, cadence=cadence).run(stop)


class Collector:
    """One consumer of all models' prediction and feedback streams."""

    def __init__(
        self,
        store: Store,
        models: Path,
        consumer: str,
        *,
        cadence: Cadence = Cadence(),
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cadence = cadence
        self._monotonic = monotonic
        self._stats = StatsStore(store)
        self._catalog = Catalog(models)
        self._reader = StreamReader(store, consumer)
        self._predictions = PredictionFolder(self._stats, self._catalog, consumer, clock=clock)
        self._labels = LabelFolder(self._stats, consumer)
        self._closer = WindowCloser(self._stats, self._catalog, clock=clock, thresholds=thresholds)
        self._models: Mapping[str, ModelFolder] = {}
        self._streams: dict[str, tuple[str, bool]] = {}
        """Stream -> model, and whether it holds predictions."""
        self._next_scan = self._next_commit = self._next_claim = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until `stop` is set, then commit what is held. An outage of the store is waited out."""
        delay, is_out = FIRST_RETRY_SECONDS, False
        while not stop.is_set():
            try:
                await self.resume()
                while not stop.is_set():
                    await self.step(stop)
                    if is_out:
                        logger.info("the store answers again")
                    delay, is_out = FIRST_RETRY_SECONDS, False
                await self.commit()
            except NotOurs as error:
                logger.info("%s; reading again", error)
            except StoreUnavailable as error:
                if not is_out:
                    logger.warning("collector: %s; retrying", error)
                is_out = True
                await _wait(stop, delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)

    async def resume(self) -> None:
        """Forget what is held and start with what the store says is pending. Raises `StoreUnavailable`."""
        self._predictions.drop()
        self._labels.drop()
        self._reader.rewind()
        await self.rescan()
        self._next_commit = self._monotonic() + self._cadence.commit
        self._next_claim = self._monotonic()

    async def step(self, stop: asyncio.Event) -> None:
        """Read once, and do what is due."""
        if self._monotonic() >= self._next_scan:
            await self.rescan()
        if self._streams:
            await self.read(self._cadence.block)
        else:
            await _wait(stop, self._cadence.block)
        if self._is_commit_due():
            await self.commit()
            await self.claim_if_due()
            await self.close_windows()
            self._next_commit = self._monotonic() + self._cadence.commit

    async def rescan(self) -> None:
        """Follow the models that are on disk now."""
        self._models = self._catalog.scan()
        self._streams = {keys.predictions(model): (model, True) for model in self._models}
        self._streams |= {keys.feedback(model): (model, False) for model in self._models}
        await self._reader.follow(self._streams)
        self._next_scan = self._monotonic() + self._cadence.rescan

    async def read(self, block: float = 0.0) -> int:
        """Read and fold once; how many entries that were."""
        return await self._take(await self._reader.read(self._cadence.read_entries, block))

    async def commit(self) -> None:
        """Write and acknowledge all that is held. Raises `NotOurs` or `StoreUnavailable`; `resume` after either."""
        await self._predictions.commit()
        await self._labels.commit()

    async def claim_if_due(self) -> int:
        """Take over what dead collectors left; how many entries that were. Only with nothing held."""
        if self._monotonic() < self._next_claim or not self._reader.has_caught_up:
            return 0
        claimed = await self._take(await self._reader.claim(self._cadence.claim_idle, self._cadence.read_entries))
        # Where there was something there may be more.
        self._next_claim = self._monotonic() + (0.0 if claimed else self._cadence.claim)
        return claimed

    async def close_windows(self) -> list[Verdict]:
        """Publish the verdicts that are due."""
        return await self._closer.close_due(self._models)

    def _is_commit_due(self) -> bool:
        return (
            self._monotonic() >= self._next_commit
            or self._predictions.held_rows >= self._cadence.commit_rows
            or self._predictions.held_entries + self._labels.held_entries >= self._cadence.commit_entries
        )

    async def _take(self, delivery: Delivery) -> int:
        by_stream: dict[str, list[Entry]] = {}
        for entry in delivery.entries:
            by_stream.setdefault(entry.stream, []).append(entry)
        for stream, entries in by_stream.items():
            model, holds_predictions = self._streams[stream]
            folder = self._predictions if holds_predictions else self._labels
            await folder.fold(model, entries)
        for stream, lost in delivery.lost.items():
            logger.warning("%d entries of %s were trimmed before they were committed", lost, stream)
            await self._stats.count(self._streams[stream][0], LOST_ENTRIES, lost)
        return len(delivery.entries)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
