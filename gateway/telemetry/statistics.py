"""What one model version did, as Triton's "Statistics Extension" tells it. Recorded once a batch.

Durations are sums over requests, as in Triton: ten requests that shared a run of 1 ms count as 10 ms of
`compute_infer`. Those of `batch_stats` are sums over runs. `compute_infer` begins with the gathering of the rows and
`compute_output` is the rest until every caller of the batch is answered; `compute_input` is not measured by itself and
is always 0 ns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.types import JsonObject, ModelKey

NANOSECONDS = 1_000_000_000


class VersionStatistics:
    """Sums in seconds, since the version was loaded."""

    __slots__ = ("_by_size", "_clock", "_fail", "_failed", "_infer", "_last", "_output", "_queue", "_requests", "_rows")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the one that times batches."""
        self._clock = clock
        self._requests = self._rows = self._failed = 0
        self._queue = self._infer = self._output = self._fail = 0.0
        self._last: float | None = None
        # As many entries as there are sizes of a batch, which `model.toml` limits.
        self._by_size: dict[int, list[float]] = {}
        """Rows of a run -> runs, seconds of the runs, seconds of answering."""

    @property
    def rows(self) -> int:
        """Rows of the answered requests."""
        return self._rows

    def record(
        self,
        requests: int,
        rows: int,
        queued: float,
        batch_rows: int,
        started: float,
        finished: float,
        answered: float,
    ) -> None:
        """Add a batch: its requests, their rows, the sum of their waits, the run that they shared, and its end."""
        infer = finished - started
        output = answered - finished
        self._requests += requests
        self._rows += rows
        self._queue += queued
        self._infer += requests * infer
        self._output += requests * output
        self._last = finished
        sums = self._by_size.get(batch_rows)
        if sums is None:
            sums = self._by_size[batch_rows] = [0, 0.0, 0.0]
        sums[0] += 1
        sums[1] += infer
        sums[2] += output

    def record_failure(self, enqueued: float) -> None:
        """Add a request that was admitted at `enqueued` and failed, or waited too long."""
        self._failed += 1
        self._fail += self._clock() - enqueued

    def document(self, key: ModelKey, now: float) -> JsonObject:
        """One entry of `model_stats`, with every key that Triton has; `now` is Unix time."""
        last = 0.0 if self._last is None else now - (self._clock() - self._last)
        requests = self._requests
        return {
            "name": key.name,
            "version": key.version,
            "last_inference": int(last * 1000),
            "inference_count": self._rows,
            "execution_count": sum(int(runs) for runs, _, _ in self._by_size.values()),
            "inference_stats": {
                "success": _duration(requests, self._queue + self._infer + self._output),
                "fail": _duration(self._failed, self._fail),
                "queue": _duration(requests, self._queue),
                "compute_input": _duration(requests, 0.0),
                "compute_infer": _duration(requests, self._infer),
                "compute_output": _duration(requests, self._output),
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _duration(int(runs), 0.0),
                    "compute_infer": _duration(int(runs), infer),
                    "compute_output": _duration(int(runs), output),
                }
                for size, (runs, infer, output) in sorted(self._by_size.items())
            ],
            "memory_usage": [],
        }


def _duration(count: int, seconds: float) -> JsonObject:
    return {"count": count, "ns": round(seconds * NANOSECONDS)}
