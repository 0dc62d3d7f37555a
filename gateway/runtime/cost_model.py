"""How long a run of n rows takes, learned from the runs themselves."""

from __future__ import annotations

import math

FORGET = 0.98
"""Weight of a run against the next one: the last fifty or so count."""


class CostModel:
    """`seconds = a + b * rows`, least squares with exponential forgetting.

    >>> cost = CostModel()
    >>> cost.observe(1, 0.0011)
    >>> cost.observe(10, 0.0020)
    >>> round(cost.predict(20), 4)
    0.003
    """

    __slots__ = ("_a", "_b", "_n", "_nn", "_nt", "_t", "_w")

    def __init__(self) -> None:
        self._w = self._n = self._nn = self._t = self._nt = 0.0
        self._a = math.inf
        self._b = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one run."""
        self._w = self._w * FORGET + 1.0
        self._n = self._n * FORGET + rows
        self._nn = self._nn * FORGET + rows * rows
        self._t = self._t * FORGET + seconds
        self._nt = self._nt * FORGET + rows * seconds
        spread = self._w * self._nn - self._n * self._n
        # Runs of one size alone say nothing about the slope; what is known then is that size.
        slope = (self._w * self._nt - self._n * self._t) / spread if spread > 1e-9 * self._w * self._nn else 0.0
        self._b = max(0.0, min(slope, self._t / self._n))
        self._a = (self._t - self._b * self._n) / self._w

    def predict(self, rows: int) -> float:
        """Seconds for a run of `rows` rows; infinite before the first observation."""
        return self._a + self._b * rows
