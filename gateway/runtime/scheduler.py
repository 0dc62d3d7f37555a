"""What the models of one process share: the event loop, and a budget of threads.

A batcher with work asks for a turn. In each turn of the loop those that ask are served in the order of a fair queue
over the seconds that they used, each once, so that no model's short runs keep the others, or the sockets, waiting.
A run that is too long for the loop waits in a second fair queue, over thread-seconds, until its session's threads fit
the budget. Whoever is first there is waited for: a run on all cores is not starved by runs on one.

A run on the loop waits for no thread. It is shorter than any run that it would wait for, and the loop's thread is there
in any case. Turns are given once a batch; nothing here is done for a request.

Everything here happens on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.runtime.fair_queue import FairQueue, Flow

logger = logging.getLogger(__name__)

LOOP_SECONDS = 4e-3
"""Runs on the loop that have taken this long together end its turn: the sockets are looked at before the next."""


class Seat:
    """The place of one batcher."""

    __slots__ = ("asks_since", "on_loop", "on_threads", "round", "take_turn", "thread_seconds", "threads", "waited")

    def __init__(self, take_turn: Callable[[bool], bool], threads: int) -> None:
        self.take_turn = take_turn
        self.threads = threads
        """Of one run off the loop."""
        self.on_loop = Flow(self)
        self.on_threads = Flow(self)
        self.round = 0
        """Turn of the loop in which it had its last."""
        self.asks_since: float | None = None
        """When it began to wait for threads; None if it does not."""
        self.waited = 0.0
        """Seconds that it waited for threads, of all its runs."""
        self.thread_seconds = 0.0
        """Of all its runs: their seconds times their threads, one on the loop."""


class Charge(NamedTuple):
    """What a run off the loop was charged when it began: the seconds that it was predicted to take, on its threads."""

    predicted: float
    threads: int


class Scheduler:
    """Gives turns to batchers."""

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`budget` is how many threads the runs off the loop may use together, at least 1."""
        self.budget = budget
        self._clock = clock
        self.threads_in_use = 0
        """Of the runs that are off the loop now."""
        self._turns: FairQueue[Seat] = FairQueue()
        self._threads: FairQueue[Seat] = FairQueue()
        self._round = 0
        self._seconds = 0.0
        """Of the runs on the loop in this round."""
        self._is_called = False

    def join(self, take_turn: Callable[[bool], bool], threads: int) -> Seat:
        """A place for a batcher whose runs use so many threads; with more than the budget they run by themselves.

        `take_turn` starts a run, if there is one to start; told that there are no threads, it returns False where the
        run needs some, and is called again when there are.
        """
        return Seat(take_turn, min(threads, self.budget))

    def change(self, seat: Seat, threads: int) -> None:
        """The batcher's next runs use so many threads."""
        seat.threads = min(threads, self.budget)

    def ask(self, seat: Seat) -> None:
        """The batcher has work and waits for its turn; it must not ask again before it had it."""
        self._turns.push(seat.on_loop)
        if not self._is_called:
            self._is_called = True
            asyncio.get_running_loop().call_soon(self._give_turns)

    def ask_for_threads(self, seat: Seat) -> None:
        """As `ask`, of a batcher whose next run most likely needs threads, as the last one did. See `give_threads`."""
        seat.asks_since = self._clock()
        self._threads.push(seat.on_threads)

    def ran(self, seat: Seat, seconds: float) -> None:
        """A run on the loop took so long."""
        seat.on_loop.tag += seconds
        seat.thread_seconds += seconds
        self._seconds += seconds

    def began(self, seat: Seat, predicted: float) -> Charge:
        """A run off the loop began in the batcher's turn, and is predicted to take so many seconds."""
        self.threads_in_use += seat.threads
        seat.on_threads.tag += predicted * seat.threads
        return Charge(predicted, seat.threads)

    def ended(self, seat: Seat, charge: Charge, seconds: float) -> None:
        """The run that was charged so took so long."""
        self.threads_in_use -= charge.threads
        seat.on_threads.tag += (seconds - charge.predicted) * charge.threads
        seat.thread_seconds += seconds * charge.threads

    def give_threads(self) -> None:
        """To those that wait for some, as far as there are any."""
        waiting = self._threads.waiting
        while waiting and self.threads_in_use + waiting[0][2].owner.threads <= self.budget:
            seat = self._threads.pop()
            if seat.asks_since is not None:
                seat.waited += self._clock() - seat.asks_since
                seat.asks_since = None
            try:
                seat.take_turn(True)
            except Exception:
                _log_bug()

    def runs_at_once(self, seat: Seat, *, on_loop: bool) -> float:
        """How many runs the batcher may count on while those wait that wait now."""
        if on_loop:
            return 1.0 / (1 + len(self._turns.waiting))
        others = len(self._threads.waiting) - (seat.asks_since is not None)
        return self.budget / seat.threads / (1 + others)

    def _give_turns(self) -> None:
        self._round += 1
        self._seconds = 0.0
        waiting = self._turns.waiting
        while waiting and self._seconds < LOOP_SECONDS and waiting[0][2].owner.round != self._round:
            seat = self._turns.pop()
            seat.round = self._round
            try:
                if not seat.take_turn(False):
                    self.ask_for_threads(seat)
                    self.give_threads()
            except Exception:
                _log_bug()
        self._is_called = bool(waiting)
        if waiting:
            asyncio.get_running_loop().call_soon(self._give_turns)


def _log_bug() -> None:
    """One for which the other models should not wait for ever."""
    logger.exception("a batcher failed in its turn")
