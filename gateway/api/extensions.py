"""Triton's extensions that only look: statistics and configuration of models; and the one that is refused."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.api.inference import model_and_version
from gateway.errors import Unsupported
from gateway.protocol.parameters import NO_SHARED_MEMORY
from gateway.serving.inventory import Inventory

SHARED_MEMORY_KINDS = ("systemsharedmemory", "cudasharedmemory")
SHARED_MEMORY_PATHS = (
    ("/status", "GET"),
    ("/region/{region}/status", "GET"),
    ("/region/{region}/register", "POST"),
    ("/unregister", "POST"),
    ("/region/{region}/unregister", "POST"),
)

MODEL = "/v2/models/{model}"
VERSION = MODEL + "/versions/{version}"
STATISTICS = ("/v2/models/stats", MODEL + "/stats", VERSION + "/stats")


class ExtensionsApi:
    """Endpoints over what is loaded."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    def routes(self) -> list[Route]:
        """For a Starlette application; before the routes that take `stats` for the name of a model."""
        return [
            *self.statistics_routes(),
            *(Route(path + "/config", self.config) for path in (MODEL, VERSION)),
            *(
                Route(f"/v2/{kind}{path}", self.shared_memory, methods=[method], include_in_schema=False)
                for kind in SHARED_MEMORY_KINDS
                for path, method in SHARED_MEMORY_PATHS
            ),
        ]

    def statistics_routes(self) -> list[Route]:
        """Those of `routes` that tell what one process did."""
        everything, *of_a_model = STATISTICS
        return [Route(everything, self.all_statistics), *(Route(path, self.model_statistics) for path in of_a_model)]

    async def all_statistics(self, _request: Request) -> Response:
        """`GET /v2/models/stats`."""
        return json_response(self._inventory.statistics())

    async def model_statistics(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]/stats`; without a version, of all that are loaded."""
        return json_response(self._inventory.statistics(*model_and_version(request)))

    async def config(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]/config`: Triton's ModelConfig."""
        return json_response(self._inventory.configuration(*model_and_version(request)))

    async def shared_memory(self, _request: Request) -> Response:
        """Whatever a client asks of `/v2/systemsharedmemory` and `/v2/cudasharedmemory`."""
        raise Unsupported(NO_SHARED_MEMORY)
