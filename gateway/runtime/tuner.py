"""How many rows the next run of a model may have: fixed by its `model.toml`, or learned by shape from its runs.

While the model is saturated, one run in some takes another number of rows than the chosen, so that what was measured
at load, with zeros and perhaps on a busy machine, is corrected by traffic.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from gateway.runtime.choice import WORTHWHILE, Point, choose
from gateway.runtime.cost_model import CostModel
from gateway.runtime.work import Shapes

MAX_SHAPES = 64
"""Shapes of rows that are told apart; of more, the one that was run least recently is forgotten."""
EXPLORE_EVERY = 16
"""Runs between two looks at what was learned, and at most one that tries another size."""
PROMISING = 0.7
"""Of the rate of the chosen size: another that is thought to reach it is tried."""


class BatchPolicy(NamedTuple):
    """What is to be kept to."""

    sizes: tuple[int, ...]
    """Rows that a run may be given, ascending; one of them alone is a fixed choice."""
    slo: float | None = None
    """Seconds from arrival to the end of the run, at the 99th percentile."""
    is_preferred: bool = False
    """A run takes exactly one of `sizes` where enough rows wait, rather than up to the chosen one."""


class ShapeTuner:
    """What the runs of one shape cost, and the rows chosen for them."""

    __slots__ = ("_policy", "_reach", "_runs_left", "_turn", "cost", "rows")

    def __init__(self, policy: BatchPolicy, cost: CostModel | None = None, rows: int | None = None) -> None:
        """`rows` are chosen until more is known; without them the most that may be."""
        self.cost = CostModel() if cost is None else cost
        self.rows = policy.sizes[-1] if rows is None else rows
        self._policy = policy
        self._runs_left = EXPLORE_EVERY
        self._reach = 0
        """Rows that waited at most since the last choice."""
        self._turn = 0
        """Of the sizes that are tried."""
        self.choose()

    def take(self, waiting: int) -> int:
        """The most rows for the next run while `waiting` rows are there."""
        self._reach = max(self._reach, waiting)
        self._runs_left -= 1
        rows = self.rows
        # Where nobody queues the limit does not matter.
        if self._runs_left <= 0 and waiting > 1:
            self._runs_left = EXPLORE_EVERY
            self.choose()
            rows = self._trial(waiting)
        elif self._are_late(waiting):
            rows = self._fastest(waiting)
        if self._policy.is_preferred:
            filled = [size for size in self._policy.sizes if size <= min(rows, waiting)]
            return filled[-1] if filled else rows
        return rows

    def point(self, rows: int) -> Point:
        """What a run of so many rows is thought to take."""
        return Point(rows, self.cost.predict(rows), self.cost.predict_p99(rows))

    def choose(self) -> None:
        """Choose anew by what is known now."""
        points = [self.point(size) for size in self._policy.sizes if self.cost.knows(size)]
        if points:
            self.rows = self._best(points).rows
        self._reach = 0

    def _are_late(self, waiting: int) -> bool:
        """Whether the last of those that wait, who may have come when the last run began, would miss the target."""
        slo, rows = self._policy.slo, self.rows
        if slo is None or waiting <= rows:
            return False
        return self.cost.predict_p99(rows) + self.cost.predict(rows) * waiting / rows > slo

    def _fastest(self, waiting: int) -> int:
        """The size that gets through a backlog soonest; what the target is compared with then is the queue."""
        points = [self.point(size) for size in self._policy.sizes if size <= waiting and self.cost.knows(size)]
        return choose(points).rows if points else self.rows

    def _best(self, points: list[Point]) -> Point:
        slo = self._policy.slo
        # More rows than ever wait do not come together, however good that would be. What does come together may be
        # worse than fewer.
        formed = [point for point in points if point.rows <= self._reach]
        if formed:
            best = choose(formed, slo=slo)
            if formed[-1].rate() < WORTHWHILE * best.rate():
                return best
        return choose(points, slo=slo)

    def _trial(self, waiting: int) -> int:
        """The next size in turn of those worth a run, if enough rows wait for it; else the chosen one."""
        if waiting < self.rows:
            return self.rows
        worth = [size for size in self._policy.sizes if size <= waiting and self._is_worth(size)]
        if not worth:
            return self.rows
        self._turn += 1
        return worth[self._turn % len(worth)]

    def _is_worth(self, size: int) -> bool:
        """Whether a size may be better than the chosen one, or is next to it, and is thought to keep the target."""
        point, slo = self.point(size), self._policy.slo
        is_near = self.rows <= 2 * size and size <= 2 * self.rows
        is_close = point.rate() >= PROMISING * self.point(self.rows).rate()
        return (is_near or is_close) and (slo is None or point.latency <= slo)


class Tuner:
    """The `ShapeTuner`s of one model version by the shapes of its rows."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        # Never empty: `()` is the only shape of a model with fixed rows, and of another what is known before traffic.
        self.shapes: OrderedDict[Shapes, ShapeTuner] = OrderedDict({(): ShapeTuner(policy)})
        """The one that was run last stands last."""

    @property
    def last(self) -> ShapeTuner:
        """That of the shape that was run last."""
        return self.shapes[next(reversed(self.shapes))]

    def of(self, bucket: Shapes) -> ShapeTuner:
        """What is known of a shape; a new one is thought to be like the last until it was run itself."""
        found = self.shapes.get(bucket)
        if found is None:
            return self.add(bucket, ShapeTuner(self.policy, self.last.cost.guess(), self.last.rows))
        self.shapes.move_to_end(bucket)
        return found

    def add(self, bucket: Shapes, shape: ShapeTuner) -> ShapeTuner:
        """Know one more shape, and forget the least recent of too many."""
        self.shapes[bucket] = shape
        self.shapes.move_to_end(bucket)
        if len(self.shapes) > MAX_SHAPES:
            self.shapes.popitem(last=False)
        return shape
