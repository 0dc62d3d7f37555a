"""Who is traced, in the words of Triton's "Trace Extension", read and changed while the gateway runs.

Triton traces one request in `trace_rate`; ours is the share of those whose caller leaves it open, 1 / `trace_rate`.
There is one share for all models, and where the spans go is fixed at the start.
"""

from __future__ import annotations

import logging
from typing import Any

from gateway.errors import InvalidRequest, shown
from gateway.runtime.registry import Registry
from gateway.serving.request_traces import RequestTraces
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

LEVEL, RATE = "trace_level", "trace_rate"
ON, OFF = "TIMESTAMPS", "OFF"
FIXED = {"trace_mode": "opentelemetry", "trace_count": "-1", "log_frequency": "0"}
NO_FILE = "trace_file"
"""Known to Triton, and absent in its mode `opentelemetry`."""
MAX_RATE = 2**32 - 1
"""Triton keeps the rate in 32 bits."""


class TraceSettings:
    """The share of one gateway's requests that is traced."""

    def __init__(self, traces: RequestTraces | None, registry: Registry) -> None:
        """`traces` as they are at the start, which is what a client goes back to; None where nothing is traced."""
        self._traces = traces
        self._registry = registry
        self._start = 0.0 if traces is None else traces.rate

    def document(self, model: str | None = None) -> JsonObject:
        """As `GET v2[/models/{model}]/trace/setting` shows it. Raises `NotFound` or `Unavailable` for the model."""
        if model is not None:
            self._registry.latest(model)
        traces = self._traces
        is_on = traces is not None and traces.is_on
        return {LEVEL: [ON if is_on else OFF], RATE: _one_in(traces.rate if traces is not None else 0.0), **FIXED}

    def change(self, changes: JsonObject, model: str | None = None) -> JsonObject:
        """Put the settings that are named in force, those of the start for null; all of them, as they are afterwards.

        Raises `InvalidRequest` for what cannot take effect, and as `document`; nothing is changed then.
        """
        before = self.document(model)
        if model is not None:
            raise InvalidRequest("trace settings are the same for all models: change them at /v2/trace/setting")
        traces = self._traces
        if traces is None:
            raise InvalidRequest("nothing is traced: start the gateway with otlp_endpoint to change who is")
        is_on, rate = traces.is_on, traces.rate
        for name, value in changes.items():
            if name == LEVEL:
                is_on = value is None or _is_on(value)
            elif name == RATE:
                # What a client has read and sends back changes nothing, also where the share is no 1 / n.
                rate = self._start if value is None else rate if value == before[RATE] else _share(value)
            else:
                _refuse_change(name, value)
        if (is_on, rate) != (traces.is_on, traces.rate):
            traces.change(is_on=is_on, rate=rate)
            logger.warning("tracing is changed: %s, share %g", ON if is_on else OFF, rate)
        return self.document()


def _one_in(share: float) -> str:
    return str(round(min(1 / share, MAX_RATE))) if share else "0"


def _share(value: Any) -> float:
    text = str(value) if type(value) in {str, int} else ""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_RATE)) and int(text) <= MAX_RATE):
        raise InvalidRequest(
            f"{RATE}: one request in how many, from 1 to {MAX_RATE}, or 0 for those alone whose caller says so; "
            f"got {shown(value)}"
        )
    return 1 / int(text) if int(text) else 0.0


def _is_on(value: Any) -> bool:
    if value not in ([ON], [OFF]):
        raise InvalidRequest(f'{LEVEL}: expected ["{ON}"] or ["{OFF}"], got {shown(value)}')
    return bool(value == [ON])


def _refuse_change(name: str, value: Any) -> None:
    if name not in FIXED and name != NO_FILE:
        names = ", ".join([LEVEL, RATE, *FIXED])
        raise InvalidRequest(f"{shown(name)[1:-1]}: unknown; settings: {names}")
    if value is not None and value != FIXED.get(name):
        raise InvalidRequest(f"{name}: cannot be changed; spans go to otlp_endpoint, without a count or a file")
