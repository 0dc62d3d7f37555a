"""Two ways to use the cores take turns under real load until the faster one is known.

What is measured at load says little about this on a busy machine: runs on all cores suffer from others in another way
than runs side by side. So models for which both are near keep both sessions until they were saturated for some seconds,
and what counts is rows a second. Others, and versions that are never saturated, cost nothing but the memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from gateway.runtime.registry import Registry
from gateway.types import ModelKey

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Between two looks; a window in which one of them finds too little to do does not count."""
WINDOW_SECONDS = 1.5
WINDOWS = 3
"""Of each way; the medians are compared."""
CLEARLY = 1.03
"""Times the other's rate: less is no reason to give up what was measured at load."""


class Decision(NamedTuple):
    """What a look leads to."""

    exchange: bool = False
    """Use the other way from now on."""
    is_over: bool = False
    """The way that is then in use is the one to keep."""


class Window(NamedTuple):
    """When it began, in seconds, and the rows that were done by then."""

    started: float
    rows: int


class Contest:
    """Says when to exchange the way in use for the other, and when it is decided. Knows no clock."""

    def __init__(self) -> None:
        self._rates: tuple[list[float], list[float]] = ([], [])
        """Rows a second, of the way that was the better at load and of the other."""
        self._in_use = 0
        self._window: Window | None = None

    def look(self, now: float, rows: int, *, is_saturated: bool) -> Decision:
        """`rows` were done since the version was loaded, until `now` in seconds."""
        if not is_saturated:
            self._window = None
        elif self._window is None:
            self._window = Window(now, rows)
        elif now - self._window.started >= WINDOW_SECONDS:
            self._rates[self._in_use].append((rows - self._window.rows) / (now - self._window.started))
            # The next one begins at the next look: by then the runs of the way before are over.
            self._window = None
            return self._decide()
        return Decision()

    def _decide(self) -> Decision:
        first, other = self._rates
        is_over = min(len(first), len(other)) >= WINDOWS
        wanted = int(median(other) > CLEARLY * median(first)) if is_over else 1 - self._in_use
        exchange = wanted != self._in_use
        self._in_use = wanted
        return Decision(exchange, is_over)


class CoreContests:
    """Looks after the contests of all loaded versions that have two ways to be run."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._contests: dict[ModelKey, Contest] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """At each version once."""
        contested = [version for version in self._registry if version.spare is not None]
        self._contests = {version.key: self._contests.get(version.key) or Contest() for version in contested}
        for version in contested:
            is_saturated = version.batcher.queued_rows >= version.batcher.chosen_rows
            contest = self._contests[version.key]
            decision = contest.look(self._clock(), version.statistics.rows, is_saturated=is_saturated)
            if decision.exchange:
                version.exchange()
            if decision.is_over:
                version.spare = None
                assert version.warm is not None  # noqa: S101 -- it has a spare
                logger.info("%s: %s it is, by its rate under load", version.key, version.warm.core_use)
