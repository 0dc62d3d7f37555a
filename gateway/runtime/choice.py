"""Which number of rows a run should have, given what runs cost. Pure: no session, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

INLINE_SECONDS = 2e-3
"""A run that is predicted to be shorter stays on the event loop: the hop to a thread and back would cost more."""
RUN_SECONDS = 2e-4
"""What the gateway itself does for a run, whatever its rows; measured on a slow machine, where it counts most."""
HOP_SECONDS = 5e-4
"""What a run on a thread costs besides: the hop, and the interpreter that loop and thread take from each other."""
WORTHWHILE = 0.98
"""Of the best rate: among sizes as good as this the smallest is chosen, since its callers wait least."""
SHORT_ENOUGH = 0.9
"""Of the best rate: among sizes as good as this whose runs are short the largest is chosen. Nobody waits long for it,
and a batch cut in two makes the gateway do everything twice."""
RUNS_WAITED_FOR = 2
"""Who comes when a run has just begun waits for it, and then for the own: that is the worst while the load is one that
the model can take. Several runs side by side change nothing, as the first of them to end frees a place."""


class Point(NamedTuple):
    """What a run with so many rows takes, in seconds: the mean, and the 99th percentile."""

    rows: int
    seconds: float
    p99: float

    def rate(self, runs: int = 1) -> float:
        """Rows a second with as many such runs side by side, with what the gateway does for them."""
        overhead = RUN_SECONDS if self.seconds < INLINE_SECONDS else RUN_SECONDS + HOP_SECONDS
        return runs * self.rows / (self.seconds + overhead)

    @property
    def latency(self) -> float:
        """Seconds from arrival to the end of the run, at the 99th percentile, while the load can be taken."""
        return RUNS_WAITED_FOR * self.p99


def choose(points: Sequence[Point], *, slo: float | None = None) -> Point:
    """The point with the best rate of those whose latency is at most `slo` seconds.

    Of points with nearly the same rate it is the one with the fewest rows; with the most, where runs are short. If none
    keeps `slo` the rate alone counts: what callers wait for is then the queue, and a slower choice would only make it
    longer. `points` must not be empty.

    >>> curve = [Point(1, 0.010, 0.012), Point(4, 0.020, 0.024), Point(32, 0.100, 0.120)]
    >>> choose(curve).rows
    32
    >>> choose(curve, slo=0.050).rows
    4
    >>> choose(curve, slo=0.001).rows
    32
    """
    candidates = [point for point in points if slo is None or point.latency <= slo] or points
    best = max(candidates, key=Point.rate)
    if best.seconds < INLINE_SECONDS:
        short = [p for p in candidates if p.seconds < INLINE_SECONDS and p.rate() >= SHORT_ENOUGH * best.rate()]
        return max(short, key=lambda point: point.rows)
    enough = WORTHWHILE * best.rate()
    return min((point for point in candidates if point.rate() >= enough), key=lambda point: point.rows)
