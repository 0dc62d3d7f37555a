"""Traces of sampled requests, made when they are over from what their batch recorded. Nothing here runs for others.

Who is traced: the request whose caller says so (the sampled flag of its `traceparent`); of those whose caller says
nothing, a share drawn like that of the request log. A caller that says no is heeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from gateway.errors import GatewayError
from gateway.runtime.work import Batch
from gateway.serving.call import Call
from gateway.serving.sampling import Sample
from gateway.serving.timing import durations
from gateway.telemetry.trace_context import TraceParent, parse_traceparent
from gateway.types import Array

if TYPE_CHECKING:
    # It imports the OpenTelemetry SDK, which only those pay for who trace.
    from gateway.telemetry.tracing import Tracing

Attributes: TypeAlias = dict[str, str | int | float]

NO_HTTP_NAME = "infer"
"""Of the span of a request that did not come over HTTP."""
OK = 200
SERVER_ERROR = 500
SPANS = 3
"""Of a request that ran: its own, `queue` and `run`."""


class RequestTraces:
    """Decides, and says in OpenTelemetry's words what happened to a request."""

    def __init__(
        self,
        tracing: Tracing,
        *,
        rate: float,
        scheme: str,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`scheme` is the public port's; `random` is evenly spread over [0, 1), for requests that got no id."""
        self._tracing = tracing
        self._sample = Sample(rate)
        self._scheme = scheme
        self._random = random
        self._clock = clock
        self._is_on = True

    @property
    def is_on(self) -> bool:
        """False while nobody is traced, whatever the caller says."""
        return self._is_on

    @property
    def rate(self) -> float:
        """Share of the requests whose caller leaves it open."""
        return self._sample.rate

    def change(self, *, is_on: bool, rate: float) -> None:
        """In force from the next batch on."""
        self._is_on = is_on
        self._sample = Sample(rate)

    def offer(self, batch: Batch, calls: Sequence[Call], tags: Array) -> None:
        """Trace the sampled calls of a finished batch; `tags` are those of their prediction ids.

        Their answers have been written: `call.error` says whose could not be.
        """
        if not self._is_on:
            return
        chosen = self._sample.choose(calls, tags) if self._sample.rate else ()
        for call in chosen:
            if not call.traceparent:
                self._trace(call, batch, None)
        for call in calls:
            if call.traceparent:
                parent = parse_traceparent(call.traceparent)
                if parent.is_sampled if parent is not None else call in chosen:
                    self._trace(call, batch, parent)

    def failed(self, call: Call, model: str, error: GatewayError) -> None:
        """Trace a call that was refused or failed, if it is sampled; the first to meet the error counts."""
        if not self._is_on or call.trace_id is not None:
            return
        call.trace_id = ""
        parent = parse_traceparent(call.traceparent) if call.traceparent else None
        is_sampled = parent.is_sampled if parent is not None else self._random() < self._sample.rate
        if not is_sampled or not self._tracing.has_room(1):
            return
        now = self._clock()
        attributes = {"gateway.model": model, **self._outcome(call, error)}
        if call.enqueued:
            attributes |= _choice(call)
        start = call.received or call.enqueued or now
        call.trace_id = self._tracing.record(
            _name(call), attributes, start, now, parent=parent, failure=_failure(error)
        )

    def _trace(self, call: Call, batch: Batch, parent: TraceParent | None) -> None:
        if not self._tracing.has_room(SPANS):
            return
        attributes = {
            "gateway.model": call.choice.version.key.name,
            **_choice(call),
            "gateway.prediction_id": call.prediction_id.decode(),
            "gateway.batch_rows": batch.rows,
            "gateway.batch_left": batch.left,
            **{f"gateway.{part}_seconds": seconds for part, seconds in durations(batch, call).items()},
            **self._outcome(call, call.error),
        }
        call.trace_id = self._tracing.record(
            _name(call),
            attributes,
            call.received or call.enqueued,
            batch.answered or self._clock(),
            parent=parent,
            steps=(("queue", call.enqueued, batch.started), ("run", batch.started, batch.finished)),
            failure=_failure(call.error),
        )

    def _outcome(self, call: Call, error: GatewayError | None) -> Attributes:
        """Names of https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server."""
        attributes: Attributes = {}
        endpoint = call.endpoint
        if endpoint is not None:
            attributes = {
                "http.request.method": "POST",
                "http.route": endpoint.route,
                "http.response.status_code": OK if error is None else error.status,
                "url.scheme": self._scheme,
                "url.path": endpoint.path,
            }
        if error is not None:
            attributes |= {"error.type": error.code, "gateway.error": error.message}
        return attributes


def _choice(call: Call) -> Attributes:
    choice = call.choice
    return {
        "gateway.version": choice.version.key.version,
        "gateway.variant": choice.variant,
        "gateway.route_revision": choice.revision,
        "gateway.rows": call.rows,
    }


def _name(call: Call) -> str:
    return NO_HTTP_NAME if call.endpoint is None else f"POST {call.endpoint.route}"


def _failure(error: GatewayError | None) -> str | None:
    """A refusal that the client brought upon itself is no failure of the server's."""
    return error.message if error is not None and error.status >= SERVER_ERROR else None
