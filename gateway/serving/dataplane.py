"""From a decoded request to its rows of the answer: admit, route, check, queue; then answer, record, log.

`submit` takes a callback, not a coroutine: a future and a task for each request would cost more than most models do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from gateway.errors import NotFound
from gateway.prediction_id import IdSigner, SummaryKind
from gateway.protocol.signature import check_request
from gateway.runtime.batcher import Batch
from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.call import DIRECT, Call, Reply
from gateway.serving.request_log import RequestLog
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import InferenceRequest, InferenceResponse

id_prefix = lru_cache(maxsize=4096)(IdSigner.prefix)


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
        random_unit: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`random_unit` stands in for the sticky unit of a request that has none; `clock` is Unix time."""
        self.registry = registry
        self._routes = routes
        self._signer = signer
        self._metrics = metrics
        self._log = log
        self._random_unit = random_unit
        self._clock = clock
        self.is_draining = False
        """Set while load balancers are told to go elsewhere; whoever still comes is served."""

    def submit(self, request: InferenceRequest, reply: Reply) -> Call:
        """Admit a request; `reply` gets its response or a `GatewayError`, once, later.

        Raises a `GatewayError` if the request is refused; nothing was done then and `reply` is not called.
        """
        version, variant, revision = self._route(request)
        rows = check_request(request, version.signature, version.config.batching.max_request_rows)
        call = Call(request, version, variant, revision, rows, reply)
        version.batcher.submit(call)
        return call

    def finish(self, version: ModelVersion, batch: Batch) -> None:
        """Answer every caller of a finished batch that is still there, then record and log the batch."""
        calls = [call for call in batch.works if isinstance(call, Call) and not call.is_cancelled]
        summaries = version.answers.summaries(batch.outputs) if version.answers and _has_rows(batch) else None
        now = int(self._clock())
        for call in calls:
            summary = summaries[call.start] if summaries is not None and call.rows == 1 else None
            call.prediction_id = self._sign(call, now, summary)
            call.answer(_response(call, batch))
        self._record(version, batch, calls)
        self._log.offer(version, batch, calls)

    def _route(self, request: InferenceRequest) -> tuple[ModelVersion, str, int]:
        if request.version is not None:
            return self.registry.get(request.model, request.version), DIRECT, 0
        route = self._routes.get(request.model)
        if route is None:
            # Says whether the model is unknown or was refused at load.
            self.registry.latest(request.model)
            raise NotFound(f"model {request.model!r} has no route")
        variant = route.choose(request.headers, self._random_unit())
        return self.registry.get(request.model, variant.version), variant.name, route.revision

    def _sign(self, call: Call, now: int, summary: int | None) -> str:
        answers = call.version.answers
        kind = answers.kind if answers is not None and summary is not None else SummaryKind.NONE
        key = call.version.key
        return self._signer.sign(id_prefix(key.name, call.revision, call.variant, key.version, kind), now, summary or 0)

    def _record(self, version: ModelVersion, batch: Batch, calls: list[Call]) -> None:
        metrics = self._metrics.version(version.key)
        metrics.cancelled += len(batch.works) - len(calls)
        metrics.batches += 1
        metrics.rows += sum(call.rows for call in calls)
        metrics.requests.update(call.variant for call in calls)
        enqueued = np.array([call.enqueued for call in calls])
        metrics.latency.observe(batch.finished - enqueued)
        metrics.queue.observe(batch.started - enqueued)
        metrics.run.observe(np.array([batch.finished - batch.started]))
        metrics.batch_rows.observe(np.array([batch.rows]))


def _has_rows(batch: Batch) -> bool:
    return all(output.shape[:1] == (batch.rows,) for output in batch.outputs)


def _response(call: Call, batch: Batch) -> InferenceResponse:
    specs = call.version.signature.outputs
    wanted = call.request.outputs
    if wanted is None:
        indices = list(range(len(specs)))
    else:
        names = [spec.name for spec in specs]
        indices = [names.index(name) for name in wanted]
    outputs = [(specs[index], batch.rows_of(call, index)) for index in indices]
    return InferenceResponse(call.version.key, call.request.id, outputs, call.prediction_id)
