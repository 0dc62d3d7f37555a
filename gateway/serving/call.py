"""One prediction request on its way through the data plane."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gateway.errors import GatewayError
from gateway.prediction_id import IdSigner, SummaryKind
from gateway.routing import Decision
from gateway.runtime.registry import ModelVersion
from gateway.runtime.work import Work
from gateway.types import BatchOutputs, InferenceRequest, InferenceResponse, Signature

if TYPE_CHECKING:
    from gateway.serving.request_traces import RequestTraces

Reply: TypeAlias = Callable[[InferenceResponse | GatewayError], None]
"""Called exactly once on the event loop, unless the call is cancelled."""

DIRECT = ""
"""Variant of a request that names its version: no rule chose it."""


class Endpoint(NamedTuple):
    """Where a request came in over HTTP."""

    route: str
    """Of the path, with names in braces for what varies."""
    path: str


class Choice:
    """Who answers a request: made once for each variant in force, and for each version asked for by number."""

    __slots__ = ("bare_prefix", "prefix", "revision", "traces", "units", "variant", "version")

    def __init__(
        self,
        version: ModelVersion,
        variant: str = DIRECT,
        revision: int = 0,
        traces: RequestTraces | None = None,
        units: str = "",
    ) -> None:
        self.version = version
        self.variant = variant
        self.revision = revision
        self.units = units
        """What the buckets of the route's decisions stand for, as `Route.units` says it."""
        self.traces = traces
        key = version.key
        kind = version.answers.kind if version.answers is not None else SummaryKind.NONE
        self.prefix = IdSigner.prefix(key.name, revision, variant, key.version, kind)
        """Of the prediction ids that say what was answered."""
        self.bare_prefix = IdSigner.prefix(key.name, revision, variant, key.version, SummaryKind.NONE)


class Call(Work):
    """A request, where it was routed and who waits for the answer."""

    request: InferenceRequest
    choice: Choice
    prediction_id: bytes
    """ASCII, as it is sent."""
    is_answered = False
    received = 0.0
    """Monotonic seconds at which the body was whole; 0 if nobody looked."""
    timing = b""
    """Where its time went, as `Server-Timing` says it; empty until it is known, or unless it is told."""
    query = ""
    """Of the request target, where routes may look at it."""
    decision: Decision | None = None
    """Of a route that looks at requests; None where chance alone, a version or a label decided."""
    traceparent = ""
    """What the client sent under this name; not looked at unless requests are traced."""
    trace_id: str | None = None
    """Of a traced request, in hex; empty if it failed untraced."""
    error: GatewayError | None = None
    """Why an answer that was there could not be written."""

    def __init__(self, reply: Reply) -> None:
        """The data plane fills in the rest when it admits the call."""
        self._reply = reply

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it came in over HTTP; None if it came another way. Looked at only if it is traced."""
        return None

    @property
    def variant(self) -> str:
        """Name of the variant that answers."""
        return self.choice.variant

    @property
    def revision(self) -> int:
        """Of the route that chose it; 0 for none."""
        return self.choice.revision

    def deliver(self, run: BatchOutputs) -> None:
        """Tell the caller its rows of a run that has a row for each of the batch's."""
        self.answer(self.response(run))

    def answer(self, outcome: InferenceResponse | GatewayError) -> None:
        """Tell the caller, once."""
        if not self.is_cancelled and not self.is_answered:
            self.is_answered = True
            self._reply(outcome)

    def fail(self, error: GatewayError) -> None:
        """Tell the caller what went wrong."""
        if not self.is_cancelled and not self.is_answered:
            self.choice.version.statistics.record_failure(self.enqueued)
        self.refuse(error)

    def refuse(self, error: GatewayError) -> None:
        """Tell the caller what is wrong with the request: it is refused, as at the door, and counts as no failure."""
        traces = self.choice.traces
        if traces is not None and not self.is_cancelled and not self.is_answered:
            traces.failed(self, self.choice.version.key.name, error)
        self.answer(error)

    def response(self, run: BatchOutputs) -> InferenceResponse:
        """The caller's rows of a run."""
        request, version = self.request, self.choice.version
        indices = None if request.outputs is None else output_indices(version.signature, request.outputs)
        return self.formed(
            InferenceResponse(
                version.key, request.id, None, self.prediction_id.decode(), run, indices, self.start, self.rows
            )
        )

    def formed(self, response: InferenceResponse) -> InferenceResponse:
        """The response, to be written as the request asked."""
        if self.request.forms is not None:
            response.forms = self.request.forms
            response.labels = self.choice.version.labels
        return response


@lru_cache(maxsize=4096)
def output_indices(signature: Signature, wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Which outputs a response holds, in the order in which they were asked for."""
    names = [spec.name for spec in signature.outputs]
    return tuple(names.index(name) for name in wanted)
