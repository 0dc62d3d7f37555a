"""From a decoded request to its rows of the answer: admit, route, check, queue; then answer, record, log.

`submit` takes a callback, not a coroutine: a future and a task for each request would cost more than most models do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gateway.errors import NotFound
from gateway.prediction_id import IdSigner
from gateway.protocol.parameters import schedule_of
from gateway.protocol.signature import check_request, check_rows
from gateway.routing import Route
from gateway.runtime.batcher import Batch
from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.call import Call, Choice, Reply
from gateway.serving.request_log import RequestLog
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import BatchOutputs, InferenceRequest, InferenceResponse, ModelKey, Signature


class Choices(NamedTuple):
    """What can come of a route in force."""

    route: Route
    is_random: bool
    by_variant: dict[str, Choice]


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
    ) -> None:
        """`random` is evenly spread over [0, 1), for requests that are not sticky; `clock` is Unix time."""
        self.registry = registry
        self._routes = routes
        self._signer = signer
        self._metrics = metrics
        self._log = log
        self._random = random
        self._clock = clock
        self._choices: dict[str, Choices] = {}
        self._direct_choices: dict[ModelKey, Choice] = {}
        self.is_draining = False

    def submit(self, request: InferenceRequest, reply: Reply) -> Call:
        """Admit a request; `reply` gets its response or a `GatewayError`, once, later.

        Raises a `GatewayError` if the request is refused; nothing was done then and `reply` is not called.
        """
        choice = self._choose(request)
        version = choice.version
        limit = version.config.batching.max_request_rows
        if request.fits is version.signature and version.is_batchable:
            rows = request.rows if request.rows <= limit else check_rows(request, limit)
        else:
            rows = check_request(request, version.signature, limit)
        call = Call(request, choice, rows, reply)
        if request.parameters:
            call.schedule = schedule_of(request.parameters)
        version.batcher.submit(call)
        return call

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
        has_rows = all(output.shape[:1] == (batch.rows,) for output in batch.outputs)
        summaries = version.answers.summaries(batch.outputs) if version.answers and has_rows else None
        outputs = BatchOutputs(version.signature.outputs, batch.outputs)
        now = int(self._clock())
        sign = self._signer.sign
        for call in calls:
            summary = summaries[call.start] if summaries is not None and call.rows == 1 else None
            if summary is None:
                call.prediction_id = sign(call.choice.bare_prefix, now, 0)
            else:
                call.prediction_id = sign(call.choice.prefix, now, summary)
            call.answer(_response(call, outputs, has_rows=has_rows))
        self._record(version, batch, calls)
        self._log.offer(version, batch, calls)

    def _choose(self, request: InferenceRequest) -> Choice:
        if request.version is not None:
            return self._direct(request.model, request.version)
        route = self._routes.get(request.model)
        if route is None:
            # Says whether the model is unknown or was refused at load.
            self.registry.latest(request.model)
            raise NotFound(f"model {request.model!r} has no route")
        known = self._choices.get(request.model)
        if known is None or known.route is not route:
            known = self._choices[request.model] = self._choices_of(route)
        if known.is_random:
            return known.by_variant[route.draw(self._random()).name]
        return known.by_variant[route.choose(request.headers, str(self._random())).name]

    def _choices_of(self, route: Route) -> Choices:
        by_variant = {
            variant.name: Choice(self.registry.get(route.name, variant.version), variant.name, route.revision)
            for variant in route.variants
        }
        return Choices(route, route.is_random, by_variant)

    def _direct(self, model: str, number: str) -> Choice:
        version = self.registry.get(model, number)
        choice = self._direct_choices.get(version.key)
        if choice is None or choice.version is not version:
            choice = self._direct_choices[version.key] = Choice(version)
        return choice

    def _record(self, version: ModelVersion, batch: Batch, calls: list[Call]) -> None:
        metrics = self._metrics.version(version.key)
        metrics.batches += 1
        rows = len(calls) if batch.rows == len(batch.works) else sum(call.rows for call in calls)
        metrics.rows += rows
        metrics.requests.update([call.choice.variant for call in calls])
        times = [call.enqueued for call in calls]
        queued = len(calls) * batch.started - sum(times)
        version.statistics.record(len(calls), rows, queued, batch.rows, batch.started, batch.finished)
        enqueued = np.array(times)
        metrics.latency.observe(batch.finished - enqueued)
        metrics.queue.observe(batch.started - enqueued)
        metrics.run.observe_one(batch.finished - batch.started)
        metrics.batch_rows.observe_one(batch.rows)


@lru_cache(maxsize=4096)
def _indices(signature: Signature, wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Which outputs a response holds, in the order in which they were asked for."""
    names = [spec.name for spec in signature.outputs]
    return tuple(names.index(name) for name in wanted)


def _response(call: Call, outputs: BatchOutputs, *, has_rows: bool) -> InferenceResponse:
    """A call's rows of a run; all of it where the outputs have no rows, since the call then ran alone."""
    version, request = call.choice.version, call.request
    indices = None if request.outputs is None else _indices(version.signature, request.outputs)
    if has_rows:
        return InferenceResponse(
            version.key, request.id, None, call.prediction_id, outputs, indices, call.start, call.rows
        )
    tensors = [(outputs.specs[index], outputs.arrays[index]) for index in indices or range(len(outputs.specs))]
    return InferenceResponse(version.key, request.id, tensors, call.prediction_id)
