"""How long a run of n rows takes, in the mean and at the 99th percentile, learned from the runs themselves.

Runs are told apart by size class (1, 2-3, 4-7, ... rows), since the curve may bend: each class keeps its mean, and a
line `a + b * rows` through the classes says what lies within a class and beyond the known ones. A machine that is busy
for a while slows all sizes down alike; that is the *pace*, which follows the last runs, while the classes remember
long. So sizes stay comparable although they were not run at the same time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY = 50
"""Runs of a class that count, and runs of any size that the pace is made of."""
WARMED_UP = 2
"""What a class measured at load counts for, in runs: few, as rows of zeros may be easier than real ones."""
REFIT = 32
"""Runs between two fits of the line."""
HICCUP = 2.0
"""A run that took more times what was expected counts as this many in the mean, unless the one before took as much."""
PACES = (1e-3, 1e3)
"""Between these; a change beyond is none of the machine."""
FIRST_P99 = 1.5
"""Times the mean, until runs have said otherwise."""
HIGHEST_P99 = 1e3
TAIL_UP, TAIL_DOWN = 1 + 0.1 * 0.99, 1 - 0.1 * 0.01
"""Stochastic approximation of a quantile (Robbins and Monro, 1951), on the logarithm: the step up for the one run in a
hundred that is above it balances 99 steps down."""
FASTEST = 1e-9
"""Seconds; a clock may see no time pass."""


@dataclass(slots=True)
class SizeClass:
    """What is remembered of the runs of a class: how many of them count, and their means."""

    runs: int
    rows: float
    seconds: float
    """Wall time, at the usual pace."""
    cpu_seconds: float
    """Of the thread that ran."""


class CostModel:
    """Wall time of a run as a function of its rows.

    >>> cost = CostModel()
    >>> cost.observe(1, 0.0011)
    >>> cost.observe(10, 0.0020)
    >>> round(cost.predict(20), 4)
    0.003
    """

    __slots__ = ("_a", "_b", "_classes", "_runs", "_was_slow", "p99_ratio", "pace")

    def __init__(self) -> None:
        self._classes: dict[int, SizeClass] = {}
        """By the bits of the number of rows."""
        self._a = math.inf
        self._b = 0.0
        self._runs = 0
        self._was_slow = False
        self.pace = 1.0
        """How much longer runs take now than what the classes remember."""
        self.p99_ratio = FIRST_P99
        """The 99th percentile of seconds / mean."""

    def observe(self, rows: int, seconds: float, cpu_seconds: float | None = None) -> None:
        """Learn from one run: its wall time, and the CPU time of the thread that ran it."""
        seconds = max(seconds, FASTEST)
        cpu = seconds if cpu_seconds is None else cpu_seconds
        self._runs += 1
        known = self._classes.get(rows.bit_length())
        if known is None:
            self._classes[rows.bit_length()] = SizeClass(1, rows, seconds / self.pace, cpu)
            self._fit()
            return
        expected = max((known.seconds + self._b * (rows - known.rows)) * self.pace, FASTEST)
        ratio = self._without_hiccup(seconds / expected)
        # What the pace takes of a surprise is no longer the size's. Both are geometric means: of two kinds of mean each
        # would take from the other for ever, and sizes that are not run would soon seem to take no time.
        least, most = PACES
        self.pace = max(least, min(self.pace * ratio ** (1 / min(self._runs + 1, MEMORY)), most))
        runs = known.runs = min(known.runs + 1, MEMORY)
        known.rows += (rows - known.rows) / runs
        known.seconds *= (ratio * expected / self.pace / known.seconds) ** (1 / runs)
        known.cpu_seconds += (cpu - known.cpu_seconds) / runs
        if self._runs % REFIT == 0:
            self._fit()

    def _without_hiccup(self, ratio: float) -> float:
        """What the mean learns of a run that took `ratio` times what was expected; the percentile learns all of it."""
        if ratio > self.p99_ratio:
            self.p99_ratio = min(self.p99_ratio * TAIL_UP, HIGHEST_P99)
        else:
            self.p99_ratio = max(self.p99_ratio * TAIL_DOWN, 1.0)
        is_slow = ratio > HICCUP
        counts = ratio if self._was_slow or not is_slow else HICCUP
        self._was_slow = is_slow
        return counts

    def warm(self, rows: int, seconds: float) -> None:
        """Take over what was measured for a size before there was traffic."""
        seconds = max(seconds, FASTEST)
        self.restore(SizeClass(WARMED_UP, rows, seconds, seconds))

    def guess(self) -> CostModel:
        """For runs that may be like these: the same predictions, soon overruled."""
        other = CostModel()
        other.p99_ratio = self.p99_ratio
        other._a, other._b = self.line
        other._classes = {
            bits: SizeClass(min(size.runs, WARMED_UP), size.rows, size.seconds * self.pace, size.cpu_seconds)
            for bits, size in self._classes.items()
        }
        return other

    def restore(self, size: SizeClass) -> None:
        """Take over a class of an earlier model."""
        # A mean that was rounded down belongs to the class all the same.
        self._classes[int(size.rows + FASTEST).bit_length()] = size
        self._fit()

    @property
    def classes(self) -> list[SizeClass]:
        """What is known, by ascending rows."""
        return [self._classes[bits] for bits in sorted(self._classes)]

    @property
    def line(self) -> tuple[float, float]:
        """`a` and `b` of `a + b * rows`, at the present pace; `a` is infinite before the first observation."""
        return self._a * self.pace, self._b * self.pace

    def knows(self, rows: int) -> bool:
        """Whether a run of about that size was seen."""
        return rows.bit_length() in self._classes

    def predict(self, rows: int) -> float:
        """Mean seconds for a run of `rows` rows; infinite before the first observation."""
        known = self._classes.get(rows.bit_length())
        if known is None:
            return (self._a + self._b * rows) * self.pace
        return max((known.seconds + self._b * (rows - known.rows)) * self.pace, FASTEST)

    def predict_p99(self, rows: int) -> float:
        """The 99th percentile of the same."""
        return self.predict(rows) * self.p99_ratio

    def predict_cpu(self, rows: int) -> float:
        """Mean CPU seconds of the thread that runs it: without its waiting for the interpreter or for a core.

        Infinite before the first observation, as the time may depend on values and zeros are easy ones.
        """
        if not self._runs:
            return math.inf
        known = self._classes.get(rows.bit_length())
        return self._a + self._b * rows if known is None else known.cpu_seconds + self._b * (rows - known.rows)

    def _fit(self) -> None:
        """Least squares of the relative error over the classes, so that short runs count as much as long ones."""
        weight = n = nn = t = nt = 0.0
        for size in self._classes.values():
            rows, seconds = size.rows, size.seconds
            each = 1 / (seconds * seconds)
            weight += each
            n += each * rows
            nn += each * rows * rows
            t += each * seconds
            nt += each * rows * seconds
        spread = weight * nn - n * n
        # One class alone says nothing about the slope; the steepest is thought of then, as too long a run on the event
        # loop is worse than a needless hop.
        slope = (weight * nt - n * t) / spread if spread > 1e-9 * weight * nn else t / n
        self._b = max(0.0, min(slope, t / n))
        self._a = (t - self._b * n) / weight
