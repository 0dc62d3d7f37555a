"""What a worker and its supervisor ask of each other, and the ops port of a gateway that has several workers."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.api.auth import METRICS_PATH
from gateway.api.body import read_body
from gateway.api.control import CHANGES, LOGGING
from gateway.api.extensions import STATISTICS
from gateway.api.forwarding import headers_of, passed_back, target_of
from gateway.errors import Unavailable
from gateway.protocol.json_codec import decode_object
from gateway.runtime.registry import Registry
from gateway.runtime.session import Device
from gateway.serving.fleet import Fleet
from gateway.serving.summary import summary_of
from gateway.serving.upward import Upward
from gateway.serving.worker_state import WorkerState
from gateway.telemetry.log_settings import LogSettings
from gateway.types import JsonObject

STATE_BODY_LIMIT = 16 * 2**20
ANYTHING = "/{path:path}"
ANY_METHOD = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Opening:
    """A worker opens its ports when it is told to, and whoever told it waits until they are open."""

    def __init__(self) -> None:
        self.is_wanted = asyncio.Event()
        self._is_over = asyncio.Event()
        self._is_open = False

    def end(self, *, is_open: bool) -> None:
        """Say what came of it."""
        self._is_open = is_open
        self._is_over.set()

    async def ask(self) -> None:
        """Ask for it and wait. Raises `Unavailable` if the ports cannot be opened."""
        self.is_wanted.set()
        await self._is_over.wait()
        if not self._is_open:
            raise Unavailable("the ports could not be opened; the log says why")


class WorkerApi:
    """What a worker lets its supervisor do that operators cannot."""

    def __init__(self, state: WorkerState, opening: Opening, registry: Registry, device: Device) -> None:
        self._state = state
        self._opening = opening
        self._registry = registry
        self._device = device

    def routes(self) -> list[Route]:
        """For a mount at `PRIVATE`."""
        return [Route("/state", self.state, methods=["GET", "POST"]), Route("/open", self.open, methods=["POST"])]

    async def state(self, request: Request) -> Response:
        """`GET` tells what this worker has in common with the others, `POST` makes it so."""
        if request.method == "POST":
            await self._state.become(await _document(request))
        return json_response(self._state.document())

    async def open(self, request: Request) -> Response:
        """Become like the others, then open the ports; a `Summary`."""
        await self._state.become(await _document(request))
        await self._opening.ask()
        return json_response(summary_of(self._registry, self._device)._asdict())


class UpwardApi:
    """What a worker's public port leaves to the supervisor, because it is about all workers."""

    def __init__(self, upward: Upward, max_body_bytes: int, *, control_public: bool) -> None:
        self._upward = upward
        self._max_body_bytes = max_body_bytes
        self._control_public = control_public

    def routes(self) -> list[Route]:
        """For a Starlette application, before those that answer for this worker alone, and describe themselves."""
        changes = CHANGES if self._control_public else ()
        return [
            *(Route(path, self.forward, include_in_schema=False) for path in STATISTICS),
            *(Route(path, self.forward, methods=["POST"], include_in_schema=False) for path in changes),
        ]

    async def forward(self, request: Request) -> Response:
        """The supervisor's answer."""
        body = await read_body(request, self._max_body_bytes)
        return passed_back(await self._upward.ask(request.method, target_of(request), body, headers_of(request)))


class SupervisorApi:
    """A gateway of several workers, for operators and for the workers themselves."""

    def __init__(self, fleet: Fleet, logs: LogSettings, max_body_bytes: int) -> None:
        """`logs` are the supervisor's own, which follow those of the workers."""
        self._fleet = fleet
        self._logs = logs
        self._max_body_bytes = max_body_bytes

    def ops_routes(self) -> list[Route]:
        """For the ops port: what one worker can answer is answered by one."""
        return [
            Route(METRICS_PATH, self.metrics),
            *self._change_routes(),
            Route(ANYTHING, self.forward, methods=ANY_METHOD),
        ]

    def private_routes(self) -> list[Route]:
        """For the workers."""
        statistics = [Route(path, self.statistics) for path in STATISTICS]
        return [*statistics, *self._change_routes(), Route("/v2/repository/index", self.forward, methods=["POST"])]

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition of all workers together."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Given(await self._fleet.metrics()))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    async def statistics(self, request: Request) -> Response:
        """As a single gateway's, of all workers together."""
        found = await self._fleet.statistics(target_of(request))
        return json_response(found) if isinstance(found, dict) else passed_back(found)

    async def change(self, request: Request) -> Response:
        """What is loaded, logged or traced: in all workers, or in none."""
        body = await read_body(request, self._max_body_bytes)
        answer = await self._fleet.change(target_of(request), body)
        if answer.is_success and request.url.path == LOGGING:
            self._logs.change(decode_object(body) if body else {})
        return passed_back(answer)

    async def forward(self, request: Request) -> Response:
        """One worker's answer."""
        body = await read_body(request, self._max_body_bytes)
        return passed_back(await self._fleet.ask_one(request.method, target_of(request), body, headers_of(request)))

    def _change_routes(self) -> list[Route]:
        return [Route(path, self.change, methods=["POST"]) for path in CHANGES]


class _Given(Collector):
    """Metrics that are there already, for `prometheus_client`."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


async def _document(request: Request) -> JsonObject:
    return decode_object(await read_body(request, STATE_BODY_LIMIT))
