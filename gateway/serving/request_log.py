"""The request log: sampled rows of each micro-batch on their way to the store, never in the way of a request.

`offer` is called once a batch. It appends to a buffer bounded in bytes; a background task writes. While the store is
slow or down the buffer fills, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from gateway.errors import StoreUnavailable
from gateway.protocol.log_codec import LogEntry, LoggedRequest, encode
from gateway.runtime.layout import has_rows
from gateway.runtime.registry import ModelVersion
from gateway.runtime.work import Batch
from gateway.serving.call import Call
from gateway.serving.sampling import Sample
from gateway.serving.timing import logged_timing
from gateway.state.log_writer import LogWriter
from gateway.telemetry.metrics import LOG_DROPPED, LOG_SAMPLED, LOG_WRITTEN, GatewayMetrics
from gateway.types import Array

logger = logging.getLogger(__name__)

WRITE_ENTRIES = 64
"""Entries in one round trip to the store."""
PAUSE_SECONDS = 0.1
"""Between two rounds of writing, so that busy seconds do not cost a round trip for every batch."""
FILLING = 0.25
"""Of the buffer: with so much in it the pause ends early."""
RETRY_SECONDS = 1.0


class RequestLog:
    """Samples, encodes, buffers and writes."""

    def __init__(
        self,
        writer: LogWriter,
        metrics: GatewayMetrics,
        *,
        rate: float,
        buffer_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._metrics = metrics
        self._sample = Sample(rate)
        self._buffer_bytes = buffer_bytes
        self._clock = clock
        self._buffer: deque[tuple[str, dict[bytes, bytes]]] = deque()
        self._buffered_bytes = 0
        self._has_entries = asyncio.Event()
        self._is_filling = asyncio.Event()
        self._flushing = asyncio.Lock()

    def offer(self, version: ModelVersion, batch: Batch, calls: Sequence[Call], tags: Array) -> None:
        """Take the sampled calls of a finished batch: `tags` are those of their prediction ids, which decide."""
        sampled = self._sample.choose(calls, tags)
        if not sampled:
            return
        name = version.key.name
        self._metrics.count(LOG_SAMPLED, name, amount=sum(call.rows for call in sampled))
        entry = self._entry(version, batch, sampled)
        size = sum(array.nbytes for array in (*entry.inputs.values(), *entry.outputs.values()))
        # Checked before encoding: what cannot be kept costs nothing more.
        if self._buffered_bytes + size > self._buffer_bytes:
            self._metrics.count(LOG_DROPPED, name)
            return
        fields = encode(entry)
        # Only now is it known how long the strings are.
        if self._buffered_bytes + _size(fields) > self._buffer_bytes:
            self._metrics.count(LOG_DROPPED, name)
            return
        self._buffer.append((name, fields))
        self._buffered_bytes += _size(fields)
        self._has_entries.set()
        if self._buffered_bytes > FILLING * self._buffer_bytes:
            self._is_filling.set()

    async def run(self) -> None:
        """Write for ever. What could not be written stays in the buffer and is tried again."""
        is_reachable = True
        while True:
            await self._has_entries.wait()
            try:
                await self.flush()
                is_reachable = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(PAUSE_SECONDS):
                        await self._is_filling.wait()
            except StoreUnavailable as error:
                if is_reachable:
                    logger.warning("request log: %s; entries wait in the buffer", error)
                is_reachable = False
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self) -> None:
        """Write all that is buffered. Raises `StoreUnavailable`."""
        # Two at once, as at the end of the process, would write the same entries.
        async with self._flushing:
            while self._buffer:
                entries = [self._buffer[index] for index in range(min(WRITE_ENTRIES, len(self._buffer)))]
                outcomes = await self._writer.append_predictions(entries)
                failed = []
                for entry, outcome in zip(entries, outcomes, strict=True):
                    self._buffer.popleft()
                    if outcome == "failed":
                        failed.append(entry)
                    else:
                        self._buffered_bytes -= _size(entry[1])
                        self._metrics.count(LOG_WRITTEN if outcome == "written" else LOG_DROPPED, entry[0])
                self._buffer.extendleft(reversed(failed))
                if failed:
                    raise StoreUnavailable(f"the store did not take {len(failed)} log entries")
            self._has_entries.clear()
            self._is_filling.clear()

    def abandon(self) -> int:
        """Count what is still buffered as dropped, at the end of the process; how many entries that was."""
        for name, _ in self._buffer:
            self._metrics.count(LOG_DROPPED, name)
        abandoned = len(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        return abandoned

    def _entry(self, version: ModelVersion, batch: Batch, sampled: Sequence[Call]) -> LogEntry:
        signature = version.signature
        if signature.is_batchable:
            inputs = {
                spec.name: _column(batch, sampled, batch.inputs[spec.name], spec.axis) for spec in signature.inputs
            }
            outputs = {
                spec.name: _column(batch, sampled, output, spec.axis)
                for spec, output in zip(signature.outputs, batch.outputs, strict=True)
                if has_rows(output, spec.axis, batch.rows)
            }
        else:
            inputs = {spec.name: _stacked(batch, sampled, batch.inputs[spec.name]) for spec in signature.inputs}
            outputs = {
                spec.name: _stacked(batch, sampled, output)
                for spec, output in zip(signature.outputs, batch.outputs, strict=True)
            }
        return LogEntry(
            key=version.key,
            logged_at=self._clock(),
            rate=self._sample.rate,
            requests=tuple(_logged(call) for call in sampled),
            inputs=inputs,
            outputs=outputs,
            timing=logged_timing(batch, sampled),
        )


def _column(batch: Batch, sampled: Sequence[Call], array: Array, axis: int | None) -> Array:
    """The rows of a tensor, which lie on axis 0 afterwards; what holds for all rows is repeated for each."""
    if axis is None:
        return np.broadcast_to(array, (sum(call.rows for call in sampled), *array.shape))
    parts = [batch.rows_of(call, array, axis) for call in sampled]
    column = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
    return np.moveaxis(column, axis, 0) if axis else column


def _stacked(batch: Batch, sampled: Sequence[Call], array: Array) -> Array:
    """A tensor of a model without rows: each call counts as one."""
    return np.stack([batch.rows_of(call, array) for call in sampled])


def _logged(call: Call) -> LoggedRequest:
    facts = (call.prediction_id.decode(), call.variant, call.revision, call.rows, call.trace_id or "")
    decision = call.decision
    if decision is None:
        return LoggedRequest(*facts)
    return LoggedRequest(*facts, call.choice.units, decision.bucket, decision.holdout_bucket, decision.rule)


def _size(fields: dict[bytes, bytes]) -> int:
    return sum(map(len, fields.values()))
