"""What every batcher does: admit to the queue, put the rows of a run together, give each caller its own back.

A run that fails with several callers on board is repeated for each of them alone, so that only the one with the
bad values gets the error. A model whose outputs turn out not to have one row per input row runs alone from then on.

When and where a run starts is up to the subclasses: `batcher.py` on a session, `engine/remote.py` in the engine.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from gateway.errors import GatewayError, InferenceFailed, TooManyRequests, Unavailable
from gateway.runtime.layout import Layout
from gateway.runtime.queue import WorkQueue
from gateway.runtime.work import Batch, Bucket, Work, settled
from gateway.types import Array

logger = logging.getLogger(__name__)

IDLE, BUSY, FULL, DELAY, APART = "idle", "busy", "full", "delay", "alone"
"""Why a batch left: nothing was running; the run before it was over; no more rows may share a run; `max_delay` had
passed, or enough rows were there before; works of this model share no run."""
NOT_ITS_ROWS = (TooManyRequests, Unavailable)
"""Errors of whoever runs a batch, which say nothing about its rows: each alone would fare no better."""


class Departure(NamedTuple):
    """When a batch left the queue, in seconds, and why then."""

    at: float
    reason: str


class Batcher(ABC):
    """Queues, gathers and scatters for one model version."""

    def __init__(
        self,
        layout: Layout,
        *,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        clock: Callable[[], float],
    ) -> None:
        """`timeout` is the longest wait in the queue in seconds; `on_batch` answers the callers of a finished batch."""
        self._layout = layout
        self._bucket_of = layout.bucket_of
        self._is_batchable = layout.shares_runs
        self._on_batch = on_batch
        self._clock = clock
        self.queue = WorkQueue(max_rows=max_queue_rows, timeout=timeout, clock=clock)
        self._is_scheduled = False
        """Waits for its turn, or for what it needs to run."""
        self._why = IDLE
        """What it waits for is the reason for which the next batch leaves."""
        self._running = 0
        """Runs that are elsewhere now."""
        self._is_closed = False
        self._idle = asyncio.Event()

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self.queue.rows

    @property
    def problem(self) -> str | None:
        """Why nothing can be run now; None while all is well."""
        return None

    @property
    @abstractmethod
    def chosen_rows(self) -> int:
        """That a run may have now."""

    def submit(self, work: Work) -> None:
        """Admit the work or refuse it before anything is done.

        Raises `TooManyRequests` when the queue is full, `DeadlineUnreachable` when the answer would come too late,
        `Unavailable` when the version is being closed, `InvalidRequest` for inputs that do not fit together.
        """
        if self._is_closed:
            raise Unavailable("the model is being unloaded", retry_after=1.0)
        if self._bucket_of is not None:
            work.bucket = self._bucket_of(work)
        self.queue.put(work)
        if not self._is_scheduled:
            self._why = IDLE
            self._schedule()

    def discard(self, work: Work) -> None:
        """The caller left: the room that its rows took in the queue is free at once."""
        work.cancel()
        if work.is_queued:
            self.queue.withdraw(work)

    async def close(self) -> None:
        """Refuse new work and wait until what was admitted is answered."""
        self._is_closed = True
        self._schedule()
        if self._running or self.queue.buckets:
            self._idle.clear()
            await self._idle.wait()

    @abstractmethod
    def _schedule(self) -> None:
        """See to it that the next run starts, if it may, in a later turn of the loop."""

    def _reason(self, bucket: Bucket) -> str:
        """Why the batch that was just taken from the bucket left."""
        if not self._is_batchable:
            return APART
        return FULL if bucket in self.queue.buckets else self._why

    def _gather(self, works: list[Work], departure: Departure) -> tuple[list[Work], int, dict[str, Array]] | None:
        """Those that can be run, their rows, and the inputs of the run; None if there is nothing left to run."""
        try:
            rows = rows_of(works)
            inputs = self._layout.gather(works, rows)
            if inputs is None:
                works = settled(works)
                rows = rows_of(works)
                inputs = self._layout.gather(works, rows)
        except (ValueError, KeyError, MemoryError) as error:
            self._finish(works, {}, departure, error)
            return None
        return None if inputs is None else (works, rows, inputs)

    def _finish(
        self, works: list[Work], inputs: dict[str, Array], departure: Departure, outcome: list[Array] | Exception
    ) -> None:
        self._expect()
        error = outcome if isinstance(outcome, Exception) else None
        batch = None if isinstance(outcome, Exception) else self._batch(works, inputs, outcome, departure)
        if batch is not None:
            self._answer(batch)
        elif len(works) > 1 and not isinstance(error, NOT_ITS_ROWS):
            self.queue.put_apart(works)
        else:
            for work in works:
                work.fail(error if isinstance(error, GatewayError) else InferenceFailed(f"the run failed: {error}"))

    @abstractmethod
    def _expect(self) -> None:
        """Tell the queue how fast rows leave it at full batches and in the present crowd."""

    def _answer(self, batch: Batch) -> None:
        try:
            self._on_batch(batch)
        except Exception:
            # A bug, but not one for which callers should wait for ever.
            logger.exception("answering a batch failed")
            for work in batch.works:
                work.fail(InferenceFailed("the answer could not be written; the gateway's log says more"))

    def _batch(
        self, works: list[Work], inputs: dict[str, Array], outputs: list[Array], departure: Departure
    ) -> Batch | None:
        """The finished batch, or None if the outputs do not have one row per input row and must be run again."""
        rows = rows_of(works)
        if self._is_batchable and not self._layout.has_rows(outputs, rows):
            self._is_batchable = False
            logger.warning("an output does not have one row per input row: requests run alone from now on")
            if len(works) > 1:
                return None
        finished = self._clock()
        for work, stop in zip(works, accumulate(work.rows for work in works), strict=True):
            work.start = stop - work.rows
        return Batch(works, inputs, outputs, rows, departure.at, finished, departure.reason)


def rows_of(works: list[Work]) -> int:
    """Of all of them together."""
    return sum([work.rows for work in works])
