"""The queue of one model version: who waits, in which order, how many, and for how long.

Only requests whose rows have the same shape may share a run, so each shape has a bucket of its own and delays nobody's
batch. Inside a bucket the levels of priority follow each other, and inside a level who came first is first. The queue
is bounded in rows, and by what can be done in time: who would be answered too late at the rate at which rows have been
leaving is refused when it comes. A request may bring a timeout, after which it leaves.

It knows nothing of runs: whoever takes from it says how many rows fit one, and at which rate they go.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from gateway.errors import DeadlineExceeded, DeadlineUnreachable, TooManyRequests
from gateway.protocol.parameters import DEFAULT_PRIORITY, Schedule
from gateway.runtime.work import Bucket, Work

ALONE = -1
"""For `take_from`, of a model whose works share no run: one work, whatever its rows."""
FIRST_RETRY_SECONDS = 1.0
"""`Retry-After` while nothing is known yet about how long the queue takes."""


class WorkQueue:
    """Works by bucket."""

    def __init__(self, *, max_rows: int, timeout: float, clock: Callable[[], float]) -> None:
        """`timeout` is the longest wait in seconds of `clock`."""
        self._max_rows = max_rows
        self._timeout = timeout
        self._clock = clock
        self.buckets: dict[Bucket, deque[Work]] = {}
        """Of works that wait, be it some that have left; none is empty."""
        self.rows = 0
        """That wait now."""
        self._rate = math.inf
        self._limit: float = max_rows
        """Rows that can wait without one of them being too late, and that may."""
        self.timers: dict[Work, asyncio.TimerHandle] = {}
        """Of the works whose own timeout is shorter than everybody's."""

    def put(self, work: Work) -> None:
        """Admit the work, whose bucket is known.

        Raises `TooManyRequests` when the queue is full, `DeadlineUnreachable` when the work would be done too late.
        Whoever finds the queue empty is admitted: if the rate is wrong, its run mends it.
        """
        if self.rows and (self.rows + work.rows > self._limit or work.schedule is not None):
            self._refuse_if_hopeless(work)
        work.enqueued = self._clock()
        try:
            queue = self.buckets[work.bucket]
        except KeyError:
            queue = self.buckets[work.bucket] = deque()
        if work.schedule is None:
            queue.append(work)
        else:
            self._place(work, work.schedule, queue)
        work.is_queued = True
        self.rows += work.rows

    def expect(self, rate: float) -> None:
        """So many rows a second are going to leave, infinite while nothing is known. Told after each batch."""
        self._rate = rate
        self._limit = min(self._max_rows, rate * self._timeout)

    def put_apart(self, works: Iterable[Work]) -> None:
        """Put works that were taken at the head of buckets of their own, so that each is taken by itself."""
        for work in works:
            work.bucket = (*work.bucket, (id(work),))
            self.buckets[work.bucket] = deque([work])
            work.is_queued = True
            self.rows += work.rows

    def withdraw(self, work: Work) -> None:
        """Take out a work that waits; its room is free at once."""
        work.is_queued = False
        self.rows -= work.rows
        queue = self.buckets[work.bucket]
        queue.remove(work)
        if not queue:
            del self.buckets[work.bucket]
        if work.schedule is not None:
            self._stop_timer(work)

    def oldest(self, now: float) -> Bucket | None:
        """The bucket whose head has waited longest, heads that are gone or too late taken out; None if all are."""
        buckets = self.buckets
        while buckets:
            bucket = min(buckets, key=lambda key: buckets[key][0].enqueued) if len(buckets) > 1 else next(iter(buckets))
            head = buckets[bucket][0]
            timeout = self._timeout if head.schedule is None else self._longest_wait(head.schedule)
            if head.is_cancelled:
                self.withdraw(head)
            elif head.enqueued + timeout <= now:
                self._expire(head, timeout)
            else:
                return bucket
        return None

    def rows_in(self, bucket: Bucket, works: int) -> int:
        """Rows that wait in the bucket, or those of its first `works`."""
        if len(self.buckets) == 1:
            return self.rows
        return sum([work.rows for work in islice(self.buckets[bucket], works)])

    def rows_of_batch(self, bucket: Bucket, max_rows: int) -> int:
        """No batch that is taken from the bucket now has more rows."""
        return max(self.buckets[bucket][0].rows, min(self.rows, max_rows))

    def take_from(self, bucket: Bucket, max_rows: int, now: float) -> list[Work]:
        """The works of a batch from the head of a bucket, without the expired and the gone.

        At most `max_rows` rows, unless a single work brings more. At least one work, if `oldest` named the bucket.
        """
        queue = self.buckets[bucket]
        works: list[Work] = []
        rows = 0
        while queue and (not works or rows + queue[0].rows <= max_rows):
            work = queue.popleft()
            work.is_queued = False
            self.rows -= work.rows
            timeout = self._timeout
            if work.schedule is not None:
                timeout = self._longest_wait(work.schedule)
                self._stop_timer(work)
            if work.is_cancelled:
                continue
            if work.enqueued + timeout <= now:
                work.fail(_too_late(timeout))
                continue
            works.append(work)
            rows += work.rows
        if not queue:
            del self.buckets[bucket]
        return works

    def _place(self, work: Work, schedule: Schedule, queue: deque[Work]) -> None:
        """Queue a work that says how: behind those of its level, before those of the next."""
        if schedule.priority == DEFAULT_PRIORITY:
            queue.append(work)
        else:
            queue.insert(_end_of_level(queue, schedule.priority), work)
        if schedule.timeout is not None and schedule.timeout < self._timeout:
            # The runner may be busy for longer than the caller wants to wait.
            loop = asyncio.get_running_loop()
            self.timers[work] = loop.call_later(schedule.timeout, self._expire, work, schedule.timeout)

    def _longest_wait(self, schedule: Schedule | None) -> float:
        if schedule is None or schedule.timeout is None:
            return self._timeout
        return min(self._timeout, schedule.timeout)

    def _stop_timer(self, work: Work) -> None:
        timer = self.timers.pop(work, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, work: Work, timeout: float) -> None:
        self.withdraw(work)
        work.fail(_too_late(timeout))

    def _refuse_if_hopeless(self, work: Work) -> None:
        """Raises as `put` does."""
        if self.rows + work.rows > self._max_rows:
            raise TooManyRequests(
                f"the queue holds {self.rows} rows and takes at most {self._max_rows}",
                retry_after=min(self.rows / self._rate, self._timeout) or FIRST_RETRY_SECONDS,
            )
        timeout = self._longest_wait(work.schedule)
        if work.schedule is not None and work.schedule.patience is not None:
            timeout = min(timeout, work.schedule.patience)
        seconds = (self._rows_before(work) + work.rows) / self._rate
        if seconds > timeout:
            raise DeadlineUnreachable(
                f"would be answered after about {seconds:.3g} s and has {timeout:g} s; nothing was done",
                retry_after=min(seconds - timeout, self._timeout),
            )

    def _rows_before(self, work: Work) -> int:
        """Rows that are taken before a work that comes now."""
        if work.schedule is None or work.schedule.priority == DEFAULT_PRIORITY:
            return self.rows
        queue = self.buckets.get(work.bucket, deque())
        return sum(other.rows for other in islice(queue, _end_of_level(queue, work.schedule.priority)))


def _end_of_level(queue: deque[Work], priority: int) -> int:
    """Works without a schedule are of the last level."""
    for position, work in enumerate(queue):
        if work.schedule is None or work.schedule.priority > priority:
            return position
    return len(queue)


def _too_late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"waited {timeout:g} s in the queue", retry_after=1.0)
