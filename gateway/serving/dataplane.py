"""From a decoded request to its rows of the answer: admit, route, check, queue; then answer, record, log.

`submit` takes a callback, not a coroutine: a future and a task for each request would cost more than most models do.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from gateway.errors import GatewayError, NotFound
from gateway.prediction_id import IdSigner, SignedIds
from gateway.protocol.classification import check_classes
from gateway.protocol.parameters import Schedule, schedule_of
from gateway.protocol.signature import check_request, refuse_rows
from gateway.routing import NO_FACTS, RequestFacts, Route, query_parameters
from gateway.runtime.registry import ModelVersion, Registry
from gateway.runtime.work import Batch
from gateway.serving.call import Call, Choice, Reply, output_indices
from gateway.serving.request_log import RequestLog
from gateway.serving.request_traces import RequestTraces
from gateway.serving.route_table import RouteTable
from gateway.serving.timing import Timing
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.trace_context import TRACEPARENT
from gateway.types import Array, BatchOutputs, InferenceRequest, InferenceResponse, ModelKey


class Choices(NamedTuple):
    """What can come of a route in force."""

    route: Route
    by_variant: dict[str, Choice]
    drawn: list[Choice] | None
    """Who answers by chance alone, in the order of the route's `bounds`; None if a request has a say."""


class DataPlane:
    """Everything between a decoded request and its response."""

    def __init__(
        self,
        registry: Registry,
        routes: RouteTable,
        signer: IdSigner,
        metrics: GatewayMetrics,
        log: RequestLog,
        *,
        random: Callable[[], float],
        clock: Callable[[], float] = time.time,
        traces: RequestTraces | None = None,
        tells_timing: bool = True,
    ) -> None:
        """`random` is evenly spread over [0, 1), for requests that are not sticky; `clock` is Unix time.

        With `tells_timing` each call learns where its time went before it is answered.
        """
        self.registry = registry
        self._routes = routes
        self._signer = signer
        self._metrics = metrics
        self._log = log
        self.traces = traces
        self._tells_timing = tells_timing
        self._random = random
        self._clock = clock
        self._choices: dict[str, Choices] = {}
        self._direct_choices: dict[ModelKey, Choice] = {}
        self.is_draining = False

    def submit(self, request: InferenceRequest, reply: Reply, schedule: Schedule | None = None) -> Call:
        """Admit a request; `reply` gets its response or a `GatewayError`, once, later.

        `schedule` is what the caller asks of the queue besides the request's parameters.

        Raises a `GatewayError` if the request is refused; nothing was done then and `reply` is not called.
        """
        call = Call(reply)
        call.inputs = request.inputs
        call.schedule = schedule
        if self.traces is None:
            self.admit(call, request, request.headers)
            return call
        call.traceparent = request.headers.get(TRACEPARENT, "")
        try:
            self.admit(call, request, request.headers)
        except GatewayError as error:
            self.traces.failed(call, request.model, error)
            raise
        return call

    def admit(self, call: Call, request: InferenceRequest, headers: Mapping[str, str]) -> None:
        """Admit a call that knows its inputs; it is answered or failed once, later. Raises as `submit` does."""
        choice = self.choose(call, request, headers)
        version = choice.version
        if request.fits is not version.signature or not version.has_simple_rows:
            # The decoder knew another version's signature, or none: the one that proves the fit takes no parameters.
            self.admit_to(choice, call, request)
            return
        limit = version.config.batching.max_request_rows
        call.rows = request.rows if request.rows <= limit else refuse_rows(request.rows, limit)
        call.request = request
        call.choice = choice
        version.batcher.submit(call)

    def admit_to(self, choice: Choice, call: Call, request: InferenceRequest) -> None:
        """Admit a call that `choice` is to answer, as `choose` or `labelled` said. Raises as `submit` does."""
        version = choice.version
        call.settle()
        call.rows = check_request(
            call.inputs, request.outputs, version.signature, version.config.batching.max_request_rows
        )
        check_classes(request.outputs, request.forms, version.signature)
        if request.parameters:
            asked = schedule_of(request.parameters)
            call.schedule = call.schedule if asked is None else asked.within(call.schedule)
        call.request = request
        call.choice = choice
        version.batcher.submit(call)

    def choose(self, call: Call, request: InferenceRequest, headers: Mapping[str, str]) -> Choice:
        """Who answers a request: the version it names, else whom the route's rules say, which the call then knows.

        Raises `NotFound`, or `Unavailable` for what was refused at load.
        """
        if request.version is not None:
            return self._direct(request.model, request.version)
        route = self._routes.get(request.model)
        if route is None:
            self._refuse_unrouted(request.model)
        known = self._choices.get(route.name)
        if known is None or known.route is not route:
            known = self._choices[route.name] = self._choices_of(route)
        if known.drawn is not None:
            return known.drawn[bisect_right(route.bounds, self._random())]
        facts = NO_FACTS
        if route.needs_facts:
            query = query_parameters(call.query) if call.query else NO_FACTS.query
            facts = RequestFacts(query, request.parameters, request.id)
        decision = call.decision = route.choose(headers, self._random(), facts)
        return known.by_variant[decision.variant.name]

    def labelled(self, model: str, label: str) -> Choice:
        """The variant of that name or label, whatever the route's rules. Raises `NotFound` naming those there are."""
        route = self._routes.get(model)
        if route is None:
            self._refuse_unrouted(model)
        variant = route.labelled(label)
        if variant is None:
            known = ", ".join((*(variant.name for variant in route.variants), *route.labels))
            raise NotFound(f"unknown label {label!r} of model {model!r}; its route's variants and labels: {known}")
        return Choice(self.registry.get(route.name, variant.version), variant.name, route.revision, self.traces)

    def model_of(self, name: str) -> str:
        """The model that an alias stands for; any other name stands for itself."""
        return self._routes.model_of(name)

    def counted_as(self, name: str) -> str:
        """The model's label in a metric; empty for names that clients make up."""
        model = self.model_of(name)
        return model if model in self.registry.names else ""

    def abandon(self, call: Call) -> None:
        """The caller left: what has not run yet is not run for it."""
        if not call.is_cancelled and not call.is_answered:
            call.choice.version.batcher.discard(call)
            self._metrics.version(call.choice.version.key).cancelled += 1

    def forget(self, key: ModelKey) -> None:
        """The version is no longer loaded: keep nothing of it."""
        self._choices.pop(key.name, None)
        self._direct_choices.pop(key, None)

    def finish(self, version: ModelVersion, batch: Batch) -> None:
        """Answer every caller of a finished batch that is still there, then record and log the batch."""
        calls = [call for call in batch.works if isinstance(call, Call) and not call.is_cancelled]
        layout = version.layout
        has_rows = layout.has_rows(batch.outputs, batch.rows)
        summaries = None
        if version.answers is not None and has_rows:
            summaries = version.answers.summaries(layout.rows_first(batch.outputs))
        outputs = BatchOutputs(version.signature.outputs, batch.outputs)
        if self._tells_timing:
            outputs.on_encoded = Timing(batch, calls).tell
        ids = self._sign(calls, summaries)
        # In the next turn of the loop: what is written in this one leaves at its end.
        asyncio.get_running_loop().call_soon(self._report, version, batch, calls, ids.tags)
        for call, prediction_id in zip(calls, ids.texts, strict=True):
            call.prediction_id = prediction_id
            if has_rows and layout.is_simple:
                call.deliver(outputs)
            else:
                if outputs.on_encoded is not None:
                    outputs.on_encoded()
                call.answer(_apart(call, batch))
        batch.answered = time.monotonic()

    def _report(self, version: ModelVersion, batch: Batch, calls: list[Call], tags: Array) -> None:
        """Record, trace and log a batch that was answered."""
        self._record(version, batch, calls)
        if self.traces is not None:
            self.traces.offer(batch, calls, tags)
        self._log.offer(version, batch, calls, tags)

    def _sign(self, calls: list[Call], summaries: list[int | None] | None) -> SignedIds:
        """An id for each call; it says what was answered where that is one row with a place in an id."""
        now = int(self._clock())
        if summaries is None:
            return self._signer.sign([(call.choice.bare_prefix, 0) for call in calls], now)
        said = []
        for call in calls:
            summary = summaries[call.start] if call.rows == 1 else None
            said.append((call.choice.bare_prefix, 0) if summary is None else (call.choice.prefix, summary))
        return self._signer.sign(said, now)

    def _refuse_unrouted(self, model: str) -> NoReturn:
        # Says whether the model is unknown or was refused at load.
        self.registry.latest(model)
        raise NotFound(f"model {model!r} has no route")

    def _choices_of(self, route: Route) -> Choices:
        by_variant = {
            variant.name: Choice(
                self.registry.get(route.name, variant.version), variant.name, route.revision, self.traces, route.units
            )
            for variant in route.variants
        }
        drawn = [by_variant[variant.name] for variant in route.variants] if route.is_random else None
        return Choices(route, by_variant, drawn)

    def _direct(self, model: str, number: str) -> Choice:
        version = self.registry.get(self._routes.model_of(model), number)
        choice = self._direct_choices.get(version.key)
        if choice is None or choice.version is not version:
            choice = self._direct_choices[version.key] = Choice(version, traces=self.traces)
        return choice

    def _record(self, version: ModelVersion, batch: Batch, calls: list[Call]) -> None:
        metrics = self._metrics.version(version.key)
        metrics.batches += 1
        rows = len(calls) if batch.rows == len(batch.works) else sum(call.rows for call in calls)
        metrics.rows += rows
        metrics.requests.update([call.choice.variant for call in calls])
        enqueued = [call.enqueued for call in calls]
        metrics.observe_requests(enqueued, batch.started, batch.finished)
        queued = len(calls) * batch.started - sum(enqueued)
        version.statistics.record(len(calls), rows, queued, batch.rows, batch.started, batch.finished, batch.answered)
        metrics.run.observe_one(batch.finished - batch.started)
        metrics.batch_rows.observe_one(batch.rows)


def _apart(call: Call, batch: Batch) -> InferenceResponse:
    """A caller's part of a run that is not simply some rows on axis 0."""
    version, request = call.choice.version, call.request
    specs = version.signature.outputs
    indices = range(len(specs)) if request.outputs is None else output_indices(version.signature, request.outputs)
    tensors = [(specs[index], version.layout.output_of(batch, call, index)) for index in indices]
    return call.formed(InferenceResponse(version.key, request.id, tensors, call.prediction_id.decode()))
