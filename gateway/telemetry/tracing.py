"""Traces on their way to a collector: OpenTelemetry spans over OTLP/HTTP.

The only module that speaks opentelemetry, imported only where tracing is on. A span is made when its request is over,
with the times that were taken anyway; a thread of the SDK encodes and sends. Everything has a bound: traces a second,
spans that wait, the time that sending takes. What exceeds one is counted and gone; a prediction never waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_trace_id,
    set_span_in_context,
)

from gateway import __version__
from gateway.errors import StartupError
from gateway.telemetry.metrics import TRACES, GatewayMetrics
from gateway.telemetry.trace_context import TraceParent

logger = logging.getLogger(__name__)

SIGNAL_PATH = "/v1/traces"
"""Under the collector's base URL (OTLP specification, "OTLP/HTTP request")."""
MAX_TRACES_PER_SECOND = 100
"""A trace takes some 0.2 ms of CPU, most of it for the encoding, so all of them take a fiftieth of a core."""
MAX_WAITING_SPANS = 2048
EXPORT_SPANS = 512
"""Spans in one request to the collector."""
EXPORT_EVERY_SECONDS = 1.0
EXPORT_SECONDS = 3.0
"""Longest wait for the collector to take one request, all attempts together."""
LAST_EXPORT_SECONDS = 5.0
"""At shutdown, how long the collector may take for what waits. A request that is on its way then has its time."""

EXPORTED, EXPORT_FAILED, RATE_LIMITED, QUEUE_FULL = "exported", "export_failed", "rate_limited", "queue_full"


Step: TypeAlias = tuple[str, float, float]
"""A part of what was done for a request: name, start and end in monotonic seconds."""


class Tracing:
    """Makes spans, and sends them from a thread of its own."""

    def __init__(self, endpoint: str, metrics: GatewayMetrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`endpoint` is the collector's base URL. Raises `StartupError` if the environment switches the SDK off."""
        if os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true":
            raise StartupError(f"otlp_endpoint {endpoint} and {OTEL_SDK_DISABLED}=true: unset one of them")
        self._metrics = metrics
        self._clock = clock
        # From now on each counter is written by one thread only, and none appears while another thread reads them.
        for outcome in (EXPORTED, EXPORT_FAILED, RATE_LIMITED, QUEUE_FULL):
            metrics.count(TRACES, outcome, amount=0)
        self._exporter = AccountingExporter(endpoint, metrics)
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_WAITING_SPANS,
            schedule_delay_millis=EXPORT_EVERY_SECONDS * 1e3,
            max_export_batch_size=EXPORT_SPANS,
            meter_provider=NoOpMeterProvider(),
        )
        provider = TracerProvider(sampler=ALWAYS_ON, resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("gateway", __version__)
        self._offered_spans = 0
        self._second_began = clock()
        self._made_this_second = 0

    def has_room(self, spans: int) -> bool:
        """Whether a trace of so many spans may be recorded now; if not, it is counted as lost."""
        now = self._clock()
        if now - self._second_began >= 1.0:
            self._second_began, self._made_this_second = now, 0
        if self._made_this_second >= MAX_TRACES_PER_SECOND:
            self._metrics.count(TRACES, RATE_LIMITED)
            return False
        # Counted here rather than by the processor, which would let the oldest spans go to make room.
        if self._offered_spans - self._exporter.taken_spans + spans > MAX_WAITING_SPANS:
            self._metrics.count(TRACES, QUEUE_FULL)
            return False
        return True

    def record(
        self,
        name: str,
        attributes: Mapping[str, str | int | float],
        start: float,
        end: float,
        *,
        parent: TraceParent | None = None,
        steps: Sequence[Step] = (),
        failure: str | None = None,
    ) -> str:
        """A server span with a child for each step, for which `has_room` has said yes; the id of its trace, in hex.

        `start` and `end` are monotonic seconds; `failure` says what the server did wrong, if it did.
        """
        self._made_this_second += 1
        self._offered_spans += 1 + len(steps)
        now, now_ns = self._clock(), time.time_ns()

        def wall_ns(seconds: float) -> int:
            return now_ns - round((now - seconds) * 1e9)

        span = self._tracer.start_span(name, _context(parent), SpanKind.SERVER, attributes, start_time=wall_ns(start))
        inside = set_span_in_context(span, Context())
        for step, began, ended in steps:
            self._tracer.start_span(step, inside, start_time=wall_ns(began)).end(wall_ns(ended))
        if failure is not None:
            span.set_status(StatusCode.ERROR, failure)
        span.end(wall_ns(end))
        return format_trace_id(span.get_span_context().trace_id)

    async def close(self) -> None:
        """Export what waits. What the collector does not take in `LAST_EXPORT_SECONDS` is lost, and counted."""
        stopping = asyncio.ensure_future(asyncio.to_thread(self._processor.shutdown))
        done, _ = await asyncio.wait([stopping], timeout=LAST_EXPORT_SECONDS)
        if not done:
            self._exporter.give_up()
        await stopping


class AccountingExporter(SpanExporter):
    """The SDK's exporter, with an account of what it sent and lost, and one line in the log instead of many."""

    def __init__(self, endpoint: str, metrics: GatewayMetrics) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._inner = trace_exporter.OTLPSpanExporter(endpoint.rstrip("/") + SIGNAL_PATH, timeout=EXPORT_SECONDS)
        self._is_given_up = False
        self._is_reachable = True
        self._complaints = Complaints()
        self._inner_logger = logging.getLogger(trace_exporter.__name__)
        self._inner_logger.addFilter(self._complaints)
        self.taken_spans = 0
        """Sent or lost since the start."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, in the processor's thread."""
        self._complaints.first = None
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._account(spans, is_sent=result is SpanExportResult.SUCCESS)
        return result

    def _account(self, spans: Sequence[ReadableSpan], *, is_sent: bool) -> None:
        # A trace is counted with its server span, whichever request its steps leave with.
        traces = sum(span.kind is SpanKind.SERVER for span in spans)
        self._metrics.count(TRACES, EXPORTED if is_sent else EXPORT_FAILED, amount=traces)
        self.taken_spans += len(spans)
        if is_sent and not self._is_reachable:
            logger.info("%s takes traces again", self._endpoint)
        elif not is_sent and self._is_reachable:
            why = self._complaints.first or "the gateway stops"
            logger.warning("%s does not take traces, they are dropped and counted: %s", self._endpoint, why)
        self._is_reachable = is_sent

    def give_up(self) -> None:
        """Try nothing again; what still waits is lost at once."""
        if not self._is_given_up:
            self._is_given_up = True
            self._inner.shutdown()  # type: ignore[no-untyped-call]

    def shutdown(self) -> None:
        """After the last export."""
        self.give_up()
        self._inner_logger.removeFilter(self._complaints)


class Complaints(logging.Filter):
    """What the SDK's exporter would log of an export, kept instead."""

    first: str | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the first, which names the cause; later ones tell of retries."""
        self.first = self.first or record.getMessage()
        return False


def _context(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    context = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(context), Context())


def _resource() -> Resource:
    """Who sends the spans. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say comes before our own words."""
    ours = {
        SERVICE_NAME: "model-gateway",
        SERVICE_VERSION: __version__,
        SERVICE_INSTANCE_ID: f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
