"""The dynamic micro-batcher of one model version.

Idle, a request runs at the next turn of the event loop: no timer, no wait. While as many runs are on as may be, or
other models have their turn (`scheduler.py`), requests pile up in the queue (`queue.py`), and the next run takes what
is there, oldest first, up to `max_batch_rows`.

A run that fails with several callers on board is repeated for each of them alone, so that only the one with the
bad values gets the error. A model whose outputs turn out not to have one row per input row runs alone from then on.

Everything here happens on the event loop's thread except the run itself, and that too where it is short.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import accumulate
from typing import Protocol

from gateway.errors import GatewayError, InferenceFailed, Unavailable
from gateway.runtime.cost_model import CostModel
from gateway.runtime.queue import ALONE, WorkQueue
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.work import Batch, Work, gather, settled
from gateway.types import Array, Signature

logger = logging.getLogger(__name__)

INLINE_SECONDS = 2e-3
"""A run that is predicted to be shorter stays on the event loop: the hop to a thread and back would cost more."""
INLINE_LIMIT_SECONDS = 4 * INLINE_SECONDS
"""A run that was predicted to be short and took this long is a surprise."""
SURPRISES_FORGOTTEN = 0.99
"""What remains of the count of surprises after each run."""
MAX_SURPRISES = 3.0
"""With more of them the time depends on values or on other dimensions than rows: the model runs on threads until the
count has faded. A hiccup of the machine is a surprise too, but a rare one."""


class Runner(Protocol):
    """What the batcher needs of a session."""

    signature: Signature

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """All outputs, in the order of the signature."""


class DynamicBatcher:
    """Takes from the queue, runs and scatters for one model version."""

    def __init__(
        self,
        runner: Runner,
        executor: Executor,
        scheduler: Scheduler,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        max_runs: int = 1,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        run_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`timeout` is the longest wait in the queue in seconds; `on_batch` answers the callers of a finished batch.

        At most `max_runs` runs are on threads at once, each with `threads` of the scheduler's budget. `run_clock` is
        read before and after a run to tell what it costs.
        """
        self._runner = runner
        self._executor = executor
        self._scheduler = scheduler
        self.seat = scheduler.join(self._take_turn, threads)
        self._max_batch_rows = max_batch_rows
        self._max_runs = max_runs
        self._on_batch = on_batch
        self._clock = clock
        self._run_clock = run_clock
        self.queue = WorkQueue(max_rows=max_queue_rows, timeout=timeout, clock=clock)
        self._is_batchable = runner.signature.is_batchable
        # Of a model with fixed rows all requests are alike; of one without a row axis each runs alone anyway.
        self._has_many_shapes = self._is_batchable and any(-1 in spec.shape[1:] for spec in runner.signature.inputs)
        self._input_names = [spec.name for spec in runner.signature.inputs]
        self._is_scheduled = False
        """Waits for its turn, or for threads."""
        self._running = 0
        """Runs that are on threads now."""
        self._cost = CostModel()
        self._surprises = 0.0
        self._is_closed = False
        self._idle = asyncio.Event()

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self.queue.rows

    def submit(self, work: Work) -> None:
        """Admit the work or refuse it before anything is done.

        Raises `TooManyRequests` when the queue is full, `DeadlineUnreachable` when the answer would come too late, and
        `Unavailable` when the version is being closed.
        """
        if self._is_closed:
            raise Unavailable("the model is being unloaded", retry_after=1.0)
        if self._has_many_shapes:
            # In the model's order: callers name their inputs in any.
            work.bucket = work.shapes(self._input_names)
        self.queue.put(work)
        if not self._is_scheduled:
            self._schedule()

    def discard(self, work: Work) -> None:
        """The caller left: the room that its rows took in the queue is free at once."""
        work.cancel()
        if work.is_queued:
            self.queue.withdraw(work)

    async def close(self) -> None:
        """Refuse new work and wait until what was admitted is answered."""
        self._is_closed = True
        if self._running or self.queue.buckets:
            self._idle.clear()
            await self._idle.wait()

    def _schedule(self, *, on_threads: bool = False) -> None:
        if not self._is_scheduled and self._running < self._max_runs:
            self._is_scheduled = True
            if on_threads:
                self._scheduler.ask_for_threads(self.seat)
            else:
                self._scheduler.ask(self.seat)

    def _go_on(self, *, on_threads: bool = False) -> None:
        """`on_threads` says where the last run was or is, and so most likely the next will be."""
        if self.queue.buckets:
            self._schedule(on_threads=on_threads)
        elif not self._running:
            self._idle.set()

    def _take_turn(self, has_threads: bool) -> bool:
        """Start the next run, if there is one: from the bucket whose head has waited longest.

        False if it needs threads and has none; then it is asked again when there are.
        """
        now = self._clock()
        bucket = self.queue.oldest(now)
        limit = self._max_batch_rows if self._is_batchable else ALONE
        is_short = bucket is None or self._is_short(self.queue.rows_of_batch(bucket, limit))
        if not is_short and not has_threads:
            return False
        self._is_scheduled = False
        running = self._running
        try:
            if bucket is not None:
                self._start(self.queue.take_from(bucket, limit, now), now, is_short)
        finally:
            # Whatever a caller's reply does, the next batch must run.
            self._go_on(on_threads=self._running > running)
        return True

    def _is_short(self, rows: int) -> bool:
        """Whether a run is done on the loop."""
        return self._surprises < MAX_SURPRISES and self._cost.predict(rows) < INLINE_SECONDS

    def _start(self, works: list[Work], started: float, is_short: bool) -> None:
        try:
            rows = _rows(works)
            inputs = gather(works, rows)
            if inputs is None:
                works = settled(works)
                rows = _rows(works)
                inputs = gather(works, rows)
        except (ValueError, KeyError, MemoryError) as error:
            self._finish(works, {}, started, error)
            return
        if inputs is None:
            return
        if is_short or self._is_short(rows):
            outcome = self._run(inputs, rows)
            self._scheduler.ran(self.seat, self._clock() - started)
            self._finish(works, inputs, started, outcome)
            return
        seconds = self._cost.predict(rows)
        predicted = seconds if seconds < math.inf else 0.0
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, inputs, rows)
        self._running += 1
        self._scheduler.began(self.seat, predicted)
        running.add_done_callback(lambda future: self._on_thread_done(works, inputs, started, predicted, future))

    def _run(self, inputs: dict[str, Array], rows: int) -> list[Array] | Exception:
        """The outputs, or what the run raised. Learns what it cost, on either thread."""
        # The thread's own CPU time: on another thread the clock on the wall also counts the wait for the interpreter.
        before = self._run_clock()
        try:
            outputs = self._runner.run(inputs)
        except Exception as error:
            return error
        seconds = self._run_clock() - before
        self._surprises *= SURPRISES_FORGOTTEN
        if seconds > INLINE_LIMIT_SECONDS and self._cost.predict(rows) < INLINE_SECONDS:
            self._surprises += 1.0
            # So that one hiccup does not count for fifty runs.
            seconds = INLINE_LIMIT_SECONDS
        self._cost.observe(rows, seconds)
        return outputs

    def _on_thread_done(
        self,
        works: list[Work],
        inputs: dict[str, Array],
        started: float,
        predicted: float,
        future: asyncio.Future[list[Array] | Exception],
    ) -> None:
        self._running -= 1
        self._scheduler.ended(self.seat, predicted, self._clock() - started)
        # Before the callers are answered, which takes its time, so that the threads are not idle meanwhile.
        if self.queue.buckets:
            self._schedule(on_threads=True)
        self._scheduler.give_threads()
        try:
            self._finish(works, inputs, started, future.result())
        finally:
            self._go_on()

    def _finish(
        self, works: list[Work], inputs: dict[str, Array], started: float, outcome: list[Array] | Exception
    ) -> None:
        self._expect()
        error = outcome if isinstance(outcome, Exception) else None
        batch = None if isinstance(outcome, Exception) else self._batch(works, inputs, outcome, started)
        if batch is not None:
            self._answer(batch)
        elif len(works) > 1:
            self.queue.put_apart(works)
        else:
            works[0].fail(error if isinstance(error, GatewayError) else InferenceFailed(f"the run failed: {error}"))

    def _answer(self, batch: Batch) -> None:
        try:
            self._on_batch(batch)
        except Exception:
            # A bug, but not one for which callers should wait for ever.
            logger.exception("answering a batch failed")
            for work in batch.works:
                work.fail(InferenceFailed("the answer could not be written; the gateway's log says more"))

    def _batch(self, works: list[Work], inputs: dict[str, Array], outputs: list[Array], started: float) -> Batch | None:
        """The finished batch, or None if the outputs do not have one row per input row and must be run again."""
        rows = _rows(works)
        if self._is_batchable and any(output.shape[:1] != (rows,) for output in outputs):
            self._is_batchable = False
            logger.warning("an output does not have one row per input row: requests run alone from now on")
            if len(works) > 1:
                return None
        finished = self._clock()
        for work, stop in zip(works, accumulate(work.rows for work in works), strict=True):
            work.start = stop - work.rows
        return Batch(works, inputs, outputs, rows, started, finished)

    def _expect(self) -> None:
        """Tell the queue how fast rows leave it at full batches and in the present crowd."""
        rows = self._max_batch_rows
        seconds = self._cost.predict(rows)
        if 0.0 < seconds < math.inf:
            at_once = self._scheduler.runs_at_once(self.seat, on_loop=seconds < INLINE_SECONDS)
            self.queue.expect(rows / seconds * min(self._max_runs, at_once))


def _rows(works: list[Work]) -> int:
    return sum([work.rows for work in works])
