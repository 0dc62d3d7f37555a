"""Triton's extensions that only look: statistics and configuration of models; and the one that is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.errors import Unsupported
from gateway.protocol.model_config import QueueLimits, model_config
from gateway.protocol.parameters import NO_SHARED_MEMORY
from gateway.runtime.manifest import MODEL_FILE
from gateway.runtime.registry import Loader, ModelVersion, Registry
from gateway.serving.route_table import RouteTable

SHARED_MEMORY_KINDS = ("systemsharedmemory", "cudasharedmemory")


class ExtensionsApi:
    """Endpoints over what is loaded."""

    def __init__(
        self, registry: Registry, routes: RouteTable, loader: Loader, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` is Unix time."""
        self._registry = registry
        self._route_table = routes
        self._loader = loader
        self._clock = clock

    def routes(self) -> list[Route]:
        """For a Starlette application; before the routes that take `stats` for the name of a model."""
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        return [
            Route("/v2/models/stats", self.all_statistics),
            *(Route(path + "/stats", self.model_statistics) for path in (model, version)),
            *(Route(path + "/config", self.config) for path in (model, version)),
            *(
                Route(f"/v2/{kind}{path}", self.shared_memory, methods=[method])
                for kind in SHARED_MEMORY_KINDS
                for region in ("", "/region/{region}")
                for path, method in ((region + "/status", "GET"), (region + "/unregister", "POST"))
            ),
            *(
                Route(f"/v2/{kind}/region/{{region}}/register", self.shared_memory, methods=["POST"])
                for kind in SHARED_MEMORY_KINDS
            ),
        ]

    async def all_statistics(self, _request: Request) -> Response:
        """`GET /v2/models/stats`."""
        return self._statistics(self._registry)

    async def model_statistics(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]/stats`; without a version, of all that are loaded."""
        name, version = request.path_params["model"], request.path_params.get("version")
        if version is None:
            # Says what is wrong with a model that has none.
            self._registry.latest(name)
        numbers = [version] if version is not None else self._registry.versions(name)
        return self._statistics(self._registry.get(name, number) for number in numbers)

    async def config(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]/config`: Triton's ModelConfig."""
        name, number = request.path_params["model"], request.path_params.get("version")
        version = self._registry.get(name, number) if number is not None else self._route_table.principal(name)
        batching = version.config.batching
        limits = QueueLimits(
            batching.max_batch_rows, batching.max_request_rows, batching.max_queue_rows, self._loader.request_timeout
        )
        is_on_gpu = self._loader.device == "cuda"
        return json_response(model_config(name, version.signature, limits, file=MODEL_FILE, is_on_gpu=is_on_gpu))

    async def shared_memory(self, _request: Request) -> Response:
        """Whatever a client asks of `/v2/systemsharedmemory` and `/v2/cudasharedmemory`."""
        raise Unsupported(NO_SHARED_MEMORY)

    def _statistics(self, versions: Iterable[ModelVersion]) -> Response:
        now = self._clock()
        return json_response({"model_stats": [version.statistics.document(version.key, now) for version in versions]})
