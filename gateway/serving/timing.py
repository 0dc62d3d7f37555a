"""Where the time of a prediction went, told to its caller, its trace and the request log alike.

To the caller in `Server-Timing` (https://www.w3.org/TR/server-timing/), durations in milliseconds:

    decode;dur=0.021, queue;dur=0.412, batch;desc="58 rows, busy", run;dur=0.655, encode;dur=0.104

`decode` is from the whole body to the queue, `queue` until the batch left, `run` until its outputs were there, `encode`
until the first of its answers was written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from gateway.runtime.work import Batch
from gateway.serving.call import Call
from gateway.types import JsonObject

FEW = 4
"""So many numbers are written faster one by one."""


class Timing:
    """Of a batch and its callers."""

    __slots__ = ("_batch", "_calls", "_clock")

    def __init__(self, batch: Batch, calls: Sequence[Call], clock: Callable[[], float] = time.monotonic) -> None:
        self._batch = batch
        self._calls = calls
        self._clock = clock

    def tell(self) -> None:
        """Write down for each caller how long the parts took; `encode` ends now, unless it has ended before."""
        batch, calls = self._batch, self._calls
        if batch.encoded:
            return
        batch.encoded = self._clock()
        shared = b', batch;desc="%d %b, %b", run;dur=%.3f, encode;dur=%.3f' % (
            batch.rows,
            b"row" if batch.rows == 1 else b"rows",
            batch.left.encode(),
            1e3 * (batch.finished - batch.started),
            1e3 * (batch.encoded - batch.finished),
        )
        queue = _milliseconds([batch.started - call.enqueued for call in calls])
        decode = _milliseconds([call.enqueued - call.received if call.received else 0.0 for call in calls])
        for call, decoded, queued in zip(calls, decode, queue, strict=True):
            call.timing = b"decode;dur=%b, queue;dur=%b%b" % (decoded, queued, shared)


def durations(batch: Batch, call: Call) -> dict[str, float]:
    """Seconds of each part; what was not measured is left out."""
    parts = {"queue": batch.started - call.enqueued, "run": batch.finished - batch.started}
    if call.received:
        parts["decode"] = call.enqueued - call.received
    if batch.encoded:
        parts["encode"] = batch.encoded - batch.finished
    return parts


def logged_timing(batch: Batch, calls: Sequence[Call]) -> JsonObject:
    """As the request log has it, in seconds, to the microsecond."""
    return {
        "batch_rows": batch.rows,
        "batch_left": batch.left,
        "run": round(batch.finished - batch.started, 6),
        "encode": round(max(0.0, batch.encoded - batch.finished), 6),
        "decode": [round(call.enqueued - call.received, 6) if call.received else 0.0 for call in calls],
        "queue": [round(batch.started - call.enqueued, 6) for call in calls],
    }


def _milliseconds(seconds: list[float]) -> list[bytes]:
    """As text, to the microsecond."""
    if len(seconds) <= FEW:
        return [b"%.3f" % (1e3 * value) for value in seconds]
    values = np.round(np.array(seconds) * 1e3, 3)
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
