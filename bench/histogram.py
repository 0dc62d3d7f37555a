"""Latencies in buckets that grow by a fixed ratio: any percentile to within 1 %, in constant memory."""

from __future__ import annotations

import math

RATIO = 1.01
SMALLEST_US = 1.0
BUCKETS = 2_000
"""From 1 µs to seven minutes."""

_LOG_RATIO = math.log(RATIO)


class Histogram:
    """Durations in seconds go in, percentiles in microseconds come out."""

    def __init__(self) -> None:
        self.count = 0
        self.largest_us = 0.0
        self._counts = [0] * BUCKETS

    def add(self, seconds: float) -> None:
        """Record one duration."""
        microseconds = seconds * 1e6
        index = int(math.log(microseconds) / _LOG_RATIO) + 1 if microseconds > SMALLEST_US else 0
        self._counts[min(index, BUCKETS - 1)] += 1
        self.count += 1
        self.largest_us = max(self.largest_us, microseconds)

    def percentile(self, percent: float) -> float:
        """The smallest bound that at least `percent` per cent of the durations stay within; 0 if there are none.

        >>> histogram = Histogram()
        >>> for milliseconds in range(1, 101):
        ...     histogram.add(milliseconds / 1000)
        >>> 49_500 <= histogram.percentile(50) <= 50_500
        True
        >>> histogram.percentile(100)
        100000.0
        """
        wanted = math.ceil(self.count * percent / 100)
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(SMALLEST_US * RATIO**index, self.largest_us)
        return 0.0

    def summary(self) -> dict[str, float]:
        """The percentiles that results hold."""
        return {f"p{str(percent).replace('.', '')}_us": self.percentile(percent) for percent in (50, 90, 99, 99.9)}
