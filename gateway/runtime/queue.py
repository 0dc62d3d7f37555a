"""The queue of one model version: who waits, in which order, how many, and for how long.

Only requests whose rows have the same shape may share a run, so each shape has a bucket of its own and delays nobody's
batch. Inside a bucket the levels of priority follow each other, and inside a level who came first is first. The queue
is bounded in rows. A request may bring a timeout, after which it leaves.

It knows nothing of runs: whoever takes from it says how many rows fit one.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable

from gateway.errors import DeadlineExceeded, TooManyRequests
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
        self._buckets: dict[Bucket, deque[Work]] = {}
        self.rows = 0
        """That wait now."""
        self.rate = math.inf
        """Rows a second that leave it, as far as is known; set by whoever takes them."""
        self.timers: dict[Work, asyncio.TimerHandle] = {}
        """Of the works whose own timeout is shorter than everybody's."""

    def __bool__(self) -> bool:
        """Whether any work waits, be it one that has left."""
        return bool(self._buckets)

    def put(self, work: Work) -> None:
        """Admit the work, whose bucket is known. Raises `TooManyRequests` when the queue is full."""
        if self.rows and self.rows + work.rows > self._max_rows:
            raise TooManyRequests(
                f"the queue holds {self.rows} rows and takes at most {self._max_rows}",
                retry_after=self._seconds_to_drain(),
            )
        work.enqueued = self._clock()
        try:
            queue = self._buckets[work.bucket]
        except KeyError:
            queue = self._buckets[work.bucket] = deque()
        if work.schedule is None:
            queue.append(work)
        else:
            self._place(work, work.schedule, queue)
        work.is_queued = True
        self.rows += work.rows

    def put_apart(self, works: Iterable[Work]) -> None:
        """Put works that were taken at the head of buckets of their own, so that each is taken by itself."""
        for work in works:
            work.bucket = (*work.bucket, (id(work),))
            self._buckets[work.bucket] = deque([work])
            work.is_queued = True
            self.rows += work.rows

    def withdraw(self, work: Work) -> None:
        """Take out a work that waits; its room is free at once."""
        work.is_queued = False
        self.rows -= work.rows
        queue = self._buckets[work.bucket]
        queue.remove(work)
        if not queue:
            del self._buckets[work.bucket]
        if work.schedule is not None:
            self._unplace(work, work.schedule)

    def oldest(self) -> Bucket:
        """The bucket whose head has waited longest, of a queue that is not empty."""
        return min(self._buckets, key=lambda key: self._buckets[key][0].enqueued)

    def take_from(self, bucket: Bucket, max_rows: int) -> list[Work]:
        """The works of a batch from the head of a bucket, without the expired and the gone: perhaps none.

        At most `max_rows` rows, unless a single work brings more.
        """
        queue = self._buckets[bucket]
        works: list[Work] = []
        rows = 0
        now = self._clock()
        while queue and (not works or rows + queue[0].rows <= max_rows):
            work = queue.popleft()
            work.is_queued = False
            self.rows -= work.rows
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

    def _unplace(self, work: Work, schedule: Schedule) -> float:
        """The work has left the queue, its timer stops; the longest it might have waited there, in seconds."""
        timer = self.timers.pop(work, None)
        if timer is not None:
            timer.cancel()
        return self._timeout if schedule.timeout is None else min(self._timeout, schedule.timeout)

    def _expire(self, work: Work, timeout: float) -> None:
        self.withdraw(work)
        work.fail(_too_late(timeout))

    def _seconds_to_drain(self) -> float:
        return min(self.rows / self.rate, self._timeout) if math.isfinite(self.rate) else FIRST_RETRY_SECONDS


def _end_of_level(queue: deque[Work], priority: int) -> int:
    """Works without a schedule are of the last level."""
    for position, work in enumerate(queue):
        if work.schedule is None or work.schedule.priority > priority:
            return position
    return len(queue)


def _too_late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"waited {timeout:g} s in the queue", retry_after=1.0)
