"""The dynamic micro-batcher of one model version.

Idle, a request runs at the next turn of the event loop: no timer, no wait. While as many runs are on as may be, or
other models have their turn (`scheduler.py`), requests pile up in the queue (`queue.py`), and the next run takes what
is there, oldest first, up to as many rows as the tuner says (`tuner.py`).

Everything here happens on the event loop's thread except the run itself, and that too where it is short.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

from gateway.runtime.batching import BUSY, DELAY, Batcher, Departure, rows_of
from gateway.runtime.choice import INLINE_SECONDS
from gateway.runtime.cost_model import CostModel
from gateway.runtime.layout import Layout
from gateway.runtime.queue import ALONE
from gateway.runtime.scheduler import Charge, Scheduler
from gateway.runtime.tuner import ShapeTuner, Tuner
from gateway.runtime.work import Batch, Bucket, Work
from gateway.types import Array, Signature

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


class Ran(NamedTuple):
    """A run that is over, whatever came of it."""

    outcome: list[Array] | Exception
    seconds: float
    cpu_seconds: float
    """Of the thread that ran it."""


class DynamicBatcher(Batcher):
    """Runs batches on a session: the short ones on the event loop, the others on threads."""

    def __init__(
        self,
        runner: Runner,
        executor: Executor,
        scheduler: Scheduler,
        *,
        tuner: Tuner,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        max_runs: int = 1,
        threads: int = 1,
        max_delay: float = 0.0,
        layout: Layout | None = None,
        clock: Callable[[], float] = time.monotonic,
        run_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`timeout` is the longest wait in the queue in seconds; `on_batch` answers the callers of a finished batch.

        `tuner` says how many rows a run may have, and learns from it. At most `max_runs` runs are on threads at once,
        each with `threads` of the scheduler's budget. Where no run has its rows together, requests wait up to
        `max_delay` seconds for others. Without a `layout` that of the runner's signature holds. `run_clock` is read
        before and after a run to tell what it costs.
        """
        super().__init__(
            layout or Layout(runner.signature),
            max_queue_rows=max_queue_rows,
            timeout=timeout,
            on_batch=on_batch,
            clock=clock,
        )
        self._runner = runner
        self._executor = executor
        self._scheduler = scheduler
        self.seat = scheduler.join(self._take_turn, threads)
        self._tuner = tuner
        self._max_runs = max_runs
        self._max_delay = max_delay
        self._delay: asyncio.TimerHandle | None = None
        """Ends the wait for more rows."""
        self._run_clock = run_clock
        self._surprises = 0.0

    @property
    def chosen_rows(self) -> int:
        """Of the shape that was run last."""
        return self._tuner.last.rows

    def use(self, runner: Runner, tuner: Tuner, max_runs: int, threads: int) -> None:
        """Run otherwise from the next run on; the signature is the same."""
        self._runner, self._tuner, self._max_runs = runner, tuner, max_runs
        self._scheduler.change(self.seat, threads)
        self._schedule()

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
            self._why = BUSY
            self._schedule(on_threads=on_threads)
        elif not self._running:
            self._idle.set()

    def _may_fill_up(self, bucket: Bucket, now: float) -> bool:
        """Whether to wait for more rows; a timer ends the wait."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        if self._is_closed or not self._is_batchable or self.queue.rows >= self._tuner.last.rows:
            return False
        remaining = self.queue.buckets[bucket][0].enqueued + self._max_delay - now
        if remaining <= 0:
            return False
        self._why = DELAY
        self._delay = asyncio.get_running_loop().call_later(remaining, self._schedule)
        return True

    def _take_turn(self, has_threads: bool) -> bool:
        """Start the next run, if there is one: from the bucket whose head has waited longest.

        False if it needs threads and has none; then it is asked again when there are.
        """
        now = self._clock()
        bucket = self.queue.oldest(now)
        if bucket is None or (self._max_delay and self._may_fill_up(bucket, now)):
            self._is_scheduled = False
            if bucket is None:
                self._go_on()
            return True
        shape = self._tuner.of(self._layout.shapes_of(bucket))
        most = shape.rows if self._is_batchable else ALONE
        is_short = self._is_short(shape.cost, self.queue.rows_of_batch(bucket, most))
        if not is_short and not has_threads:
            return False
        self._is_scheduled = False
        running = self._running
        try:
            works = self.queue.take_from(bucket, self._limit(bucket, shape), now)
            self._start(works, shape.cost, Departure(now, self._reason(bucket)), is_short)
        finally:
            # Whatever a caller's reply does, the next batch must run.
            self._go_on(on_threads=self._running > running)
        return True

    def _limit(self, bucket: Bucket, shape: ShapeTuner) -> int:
        """Rows that the next run may have."""
        if not self._is_batchable:
            return ALONE
        return shape.take(self.queue.rows_in(bucket, 2 * self._tuner.policy.sizes[-1]))

    def _is_short(self, cost: CostModel, rows: int) -> bool:
        """Whether a run is done on the loop."""
        return self._surprises < MAX_SURPRISES and cost.predict_cpu(rows) < INLINE_SECONDS

    def _start(self, works: list[Work], cost: CostModel, departure: Departure, is_short: bool) -> None:
        gathered = self._gather(works, departure)
        if gathered is None:
            return
        works, rows, inputs = gathered
        if is_short or self._is_short(cost, rows):
            ran = _run(self._runner, inputs, self._run_clock)
            self._scheduler.ran(self.seat, self._clock() - departure.at)
            self._learn(cost, rows, ran)
            self._finish(works, inputs, departure, ran.outcome)
            return
        seconds = cost.predict(rows)
        predicted = seconds if seconds < math.inf else 0.0
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, _run, self._runner, inputs, self._run_clock)
        self._running += 1
        charge = self._scheduler.began(self.seat, predicted)
        running.add_done_callback(lambda future: self._on_thread_done(works, cost, inputs, departure, charge, future))

    def _learn(self, cost: CostModel, rows: int, ran: Ran) -> None:
        if isinstance(ran.outcome, Exception):
            return
        cpu_seconds = ran.cpu_seconds
        self._surprises *= SURPRISES_FORGOTTEN
        if cpu_seconds > INLINE_LIMIT_SECONDS and cost.predict_cpu(rows) < INLINE_SECONDS:
            self._surprises += 1.0
            # So that one hiccup does not count for fifty runs.
            cpu_seconds = INLINE_LIMIT_SECONDS
        cost.observe(rows, ran.seconds, cpu_seconds)

    def _on_thread_done(
        self,
        works: list[Work],
        cost: CostModel,
        inputs: dict[str, Array],
        departure: Departure,
        charge: Charge,
        future: asyncio.Future[Ran],
    ) -> None:
        self._running -= 1
        self._scheduler.ended(self.seat, charge, self._clock() - departure.at)
        # Before the callers are answered, which takes its time, so that the threads are not idle meanwhile.
        if self.queue.buckets:
            self._why = BUSY
            self._schedule(on_threads=True)
        self._scheduler.give_threads()
        try:
            ran = future.result()
            self._learn(cost, rows_of(works), ran)
            self._finish(works, inputs, departure, ran.outcome)
        finally:
            self._go_on()

    def _expect(self) -> None:
        shape = self._tuner.last
        rows, seconds = shape.rows, shape.cost.predict(shape.rows)
        if 0.0 < seconds < math.inf:
            at_once = self._scheduler.runs_at_once(self.seat, on_loop=seconds < INLINE_SECONDS)
            self.queue.expect(rows / seconds * min(self._max_runs, at_once))


def _run(runner: Runner, inputs: dict[str, Array], clock: Callable[[], float]) -> Ran:
    """The outputs, or what the run raised, and what it took; on either thread."""
    started, cpu_started = time.perf_counter(), clock()
    try:
        outcome: list[Array] | Exception = runner.run(inputs)
    except Exception as error:
        outcome = error
    # Both, since on a thread the clock on the wall also counts the wait for the interpreter.
    return Ran(outcome, time.perf_counter() - started, clock() - cpu_started)
