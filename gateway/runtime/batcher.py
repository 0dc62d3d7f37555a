"""The dynamic micro-batcher of one model version.

Idle, a request runs at the next turn of the event loop: no timer, no wait. While as many runs are on as may be,
requests pile up, and the next run takes what is there, oldest first, up to `max_batch_rows`. Only requests whose rows
have the same shape share a run; the others wait in their own bucket and delay nobody's batch. The queue is bounded in
rows. A request may bring a priority, which puts it before the lower ones of its bucket, and a timeout, after which it
leaves the queue.

A run that fails with several callers on board is repeated for each of them alone, so that only the one with the
bad values gets the error. A model whose outputs turn out not to have one row per input row runs alone from then on.

Everything here happens on the event loop's thread except the run itself, and that too where it is short.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import accumulate
from typing import Protocol

from gateway.errors import DeadlineExceeded, GatewayError, InferenceFailed, TooManyRequests, Unavailable
from gateway.protocol.parameters import DEFAULT_PRIORITY, Schedule
from gateway.runtime.cost_model import CostModel
from gateway.runtime.work import Batch, Bucket, Work, gather, settled
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
FIRST_RETRY_SECONDS = 1.0
"""`Retry-After` while nothing is known yet about how long the queue takes."""

BUSY = (TooManyRequests, Unavailable)
"""Errors of whoever runs a batch, which say nothing about its rows: each alone would fare no better."""


class Runner(Protocol):
    """What the batcher needs of a session."""

    signature: Signature

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """All outputs, in the order of the signature."""


class Batcher(ABC):
    """Queues, groups and scatters for one model version; where a batch is run is said below it."""

    def __init__(
        self,
        signature: Signature,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        max_runs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout` is the longest wait in the queue in seconds; `on_batch` answers the callers of a finished batch.

        At most `max_runs` runs are on at once.
        """
        self.max_batch_rows = max_batch_rows
        self.max_runs = max_runs
        self._max_queue_rows = max_queue_rows
        self._timeout = timeout
        self._on_batch = on_batch
        self._clock = clock
        self._buckets: dict[Bucket, deque[Work]] = {}
        self._is_batchable = signature.is_batchable
        # Of a model with fixed rows all requests are alike; of one without a row axis each runs alone anyway.
        self._has_many_shapes = self._is_batchable and any(-1 in spec.shape[1:] for spec in signature.inputs)
        self._input_names = [spec.name for spec in signature.inputs]
        self._is_scheduled = False
        self._running = 0
        """Runs that are elsewhere now."""
        self._cost = CostModel()
        self._is_closed = False
        self._idle = asyncio.Event()
        self._timers: dict[Work, asyncio.TimerHandle] = {}
        """Of the queued works whose own timeout is shorter than everybody's."""
        self.queued_rows = 0

    @property
    def problem(self) -> str | None:
        """Why nothing can be run now; None while all is well."""
        return None

    def submit(self, work: Work) -> None:
        """Admit the work or refuse it before anything is done.

        Raises `TooManyRequests` when the queue is full, `Unavailable` when the version is being closed.
        """
        if self._is_closed:
            raise Unavailable("the model is being unloaded", retry_after=1.0)
        if self.queued_rows and self.queued_rows + work.rows > self._max_queue_rows:
            raise TooManyRequests(
                f"the queue holds {self.queued_rows} rows and takes at most {self._max_queue_rows}",
                retry_after=self._seconds_to_drain(),
            )
        work.enqueued = self._clock()
        if self._has_many_shapes:
            # In the model's order: callers name their inputs in any.
            work.bucket = work.shapes(self._input_names)
        try:
            queue = self._buckets[work.bucket]
        except KeyError:
            queue = self._buckets[work.bucket] = deque()
        if work.schedule is None:
            queue.append(work)
        else:
            self._place(work, work.schedule, queue)
        work.is_queued = True
        self.queued_rows += work.rows
        if not self._is_scheduled:
            self._schedule()

    def discard(self, work: Work) -> None:
        """The caller left: the room that its rows took in the queue is free at once."""
        work.cancel()
        if work.is_queued:
            self._withdraw(work)

    def _withdraw(self, work: Work) -> None:
        work.is_queued = False
        self.queued_rows -= work.rows
        queue = self._buckets[work.bucket]
        queue.remove(work)
        if not queue:
            del self._buckets[work.bucket]
        if work.schedule is not None:
            self._unplace(work, work.schedule)

    def _place(self, work: Work, schedule: Schedule, queue: deque[Work]) -> None:
        """Queue a work that says how: behind those of its level, before those of the next."""
        if schedule.priority == DEFAULT_PRIORITY:
            queue.append(work)
        else:
            queue.insert(_end_of_level(queue, schedule.priority), work)
        if schedule.timeout is not None and schedule.timeout < self._timeout:
            # The runner may be busy for longer than the caller wants to wait.
            loop = asyncio.get_running_loop()
            self._timers[work] = loop.call_later(schedule.timeout, self._expire, work, schedule.timeout)

    def _unplace(self, work: Work, schedule: Schedule) -> float:
        """The work has left the queue, its timer stops; the longest it might have waited there, in seconds."""
        timer = self._timers.pop(work, None)
        if timer is not None:
            timer.cancel()
        return self._timeout if schedule.timeout is None else min(self._timeout, schedule.timeout)

    def _expire(self, work: Work, timeout: float) -> None:
        self._withdraw(work)
        work.fail(_too_late(timeout))

    def _seconds_to_drain(self) -> float:
        batches = self.queued_rows / self.max_batch_rows / self.max_runs
        seconds = self._cost.predict(self.max_batch_rows) * batches
        return min(seconds, self._timeout) if math.isfinite(seconds) else FIRST_RETRY_SECONDS

    async def close(self) -> None:
        """Refuse new work and wait until what was admitted is answered."""
        self._is_closed = True
        if self._running or self._buckets:
            self._idle.clear()
            await self._idle.wait()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._running < self.max_runs:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        works = self._take()
        if works:
            self._start(works)
            if self._buckets:
                self._schedule()
        elif not self._running:
            self._idle.set()

    def _take(self) -> list[Work]:
        """The next batch: the bucket whose head has waited longest, oldest first, without the expired and the gone."""
        while self._buckets:
            bucket = min(self._buckets, key=lambda key: self._buckets[key][0].enqueued)
            works = self._take_from(bucket)
            if works:
                return works
        return []

    def _take_from(self, bucket: Bucket) -> list[Work]:
        queue = self._buckets[bucket]
        works: list[Work] = []
        rows = 0
        now = self._clock()
        while queue and (not works or (self._is_batchable and rows + queue[0].rows <= self.max_batch_rows)):
            work = queue.popleft()
            work.is_queued = False
            self.queued_rows -= work.rows
            timeout = self._timeout if work.schedule is None else self._unplace(work, work.schedule)
            if work.is_cancelled:
                continue
            if work.enqueued + timeout <= now:
                work.fail(_too_late(timeout))
                continue
            works.append(work)
            rows += work.rows
        if not queue:
            del self._buckets[bucket]
        return works

    def _start(self, works: list[Work]) -> None:
        started = self._clock()
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
            self._schedule()
            return
        self._begin(works, inputs, rows, started)

    @abstractmethod
    def _begin(self, works: list[Work], inputs: dict[str, Array], rows: int, started: float) -> None:
        """Run the batch. `_finish` is called once, now or later; until then the run counts as `_running`."""

    def _finish(
        self, works: list[Work], inputs: dict[str, Array], started: float, outcome: list[Array] | Exception
    ) -> None:
        # Whatever a caller's reply does, the next batch must run.
        self._schedule()
        error = outcome if isinstance(outcome, Exception) else None
        batch = None if isinstance(outcome, Exception) else self._batch(works, inputs, outcome, started)
        if batch is not None:
            self._answer(batch)
        elif len(works) > 1 and not isinstance(error, BUSY):
            self._run_alone(works)
        else:
            for work in works:
                work.fail(error if isinstance(error, GatewayError) else InferenceFailed(f"the run failed: {error}"))

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

    def _run_alone(self, works: list[Work]) -> None:
        """Put each work back at the head of a bucket of its own."""
        for work in works:
            work.bucket = (*work.bucket, (id(work),))
            self._buckets[work.bucket] = deque([work])
            work.is_queued = True
            self.queued_rows += work.rows


class DynamicBatcher(Batcher):
    """Runs the batches on a session: the short ones on the event loop, the others on threads."""

    def __init__(
        self,
        runner: Runner,
        executor: Executor,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        max_runs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `max_runs` runs are on threads of `executor` at once; the rest is as for any batcher."""
        super().__init__(
            runner.signature,
            max_batch_rows=max_batch_rows,
            max_queue_rows=max_queue_rows,
            timeout=timeout,
            on_batch=on_batch,
            max_runs=max_runs,
            clock=clock,
        )
        self._runner = runner
        self._executor = executor
        self._surprises = 0.0

    def _begin(self, works: list[Work], inputs: dict[str, Array], rows: int, started: float) -> None:
        if self._surprises < MAX_SURPRISES and self._cost.predict(rows) < INLINE_SECONDS:
            self._finish(works, inputs, started, self._run(inputs, rows))
            return
        self._running += 1
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, inputs, rows)
        running.add_done_callback(lambda future: self._on_thread_done(works, inputs, started, future))

    def _run(self, inputs: dict[str, Array], rows: int) -> list[Array] | Exception:
        """The outputs, or what the run raised. Learns what it cost, on either thread."""
        # The thread's own CPU time: on another thread the clock on the wall also counts the wait for the interpreter.
        before = time.thread_time()
        try:
            outputs = self._runner.run(inputs)
        except Exception as error:
            return error
        seconds = time.thread_time() - before
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
        future: asyncio.Future[list[Array] | Exception],
    ) -> None:
        self._running -= 1
        self._finish(works, inputs, started, future.result())


def _rows(works: list[Work]) -> int:
    return sum([work.rows for work in works])


def _end_of_level(queue: deque[Work], priority: int) -> int:
    """Works without a schedule are of the last level."""
    for position, work in enumerate(queue):
        if work.schedule is None or work.schedule.priority > priority:
            return position
    return len(queue)


def _too_late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"waited {timeout:g} s in the queue", retry_after=1.0)
