"""What changes how the gateway serves, under the paths that clients of Triton know: for operators.

The ops port always takes it, the public port where `control_public` says so. Looking is free on both.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.api.body import read_body
from gateway.errors import Forbidden
from gateway.protocol.json_codec import decode_object
from gateway.protocol.model_control import version_to_load, version_to_unload, wants_only_ready
from gateway.serving.model_control import ModelControl
from gateway.serving.trace_settings import TraceSettings
from gateway.telemetry.log_settings import LogSettings
from gateway.types import JsonObject

MODEL = "/v2/repository/models/{model}"
LOGGING = "/v2/logging"
CHANGES = (MODEL + "/load", MODEL + "/unload", LOGGING, "/v2/trace/setting", "/v2/models/{model}/trace/setting")
"""Paths whose POST changes something."""


class ControlApi:
    """The model repository, and the settings of the log and of traces."""

    def __init__(
        self, control: ModelControl, logs: LogSettings, traces: TraceSettings, max_body_bytes: int, *, is_open: bool
    ) -> None:
        """`is_open` lets whoever reaches the port change something."""
        self._control = control
        self._logs = logs
        self._traces = traces
        self._max_body_bytes = max_body_bytes
        self._is_open = is_open

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(MODEL + "/load", self.load, methods=["POST"]),
            Route(MODEL + "/unload", self.unload, methods=["POST"]),
            Route(LOGGING, self.logging, methods=["GET", "POST"]),
            Route("/v2/trace/setting", self.trace_setting, methods=["GET", "POST"]),
            Route("/v2/models/{model}/trace/setting", self.trace_setting, methods=["GET", "POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """`POST /v2/repository/index`: every version on disk or loaded, and why it is not ready."""
        only_ready = wants_only_ready(await self._document(request))
        return json_response(await self._control.index(only_ready=only_ready))

    async def load(self, request: Request) -> Response:
        """`POST /v2/repository/models/{model}/load`: answered when the versions take requests."""
        check_open(is_open=self._is_open)
        version = version_to_load(await self._document(request))
        name = request.path_params["model"]
        return json_response({"name": name, "versions": await self._control.load(name, version)})

    async def unload(self, request: Request) -> Response:
        """`POST /v2/repository/models/{model}/unload`: answered when what was in flight is, and the memory is free."""
        check_open(is_open=self._is_open)
        version = version_to_unload(await self._document(request))
        name = request.path_params["model"]
        return json_response({"name": name, "versions": await self._control.unload(name, version)})

    async def logging(self, request: Request) -> Response:
        """`GET /v2/logging` shows the settings, `POST` changes those that it names and shows them all."""
        if request.method != "POST":
            return json_response(self._logs.document())
        check_open(is_open=self._is_open)
        return json_response(self._logs.change(await self._document(request)))

    async def trace_setting(self, request: Request) -> Response:
        """`/v2[/models/{model}]/trace/setting`: `GET` and `POST` as of `/v2/logging`; a model's are those of all."""
        model = request.path_params.get("model")
        if request.method != "POST":
            return json_response(self._traces.document(model))
        check_open(is_open=self._is_open)
        return json_response(self._traces.change(await self._document(request), model))

    async def _document(self, request: Request) -> JsonObject:
        """Clients of Triton send no body where they have nothing to say."""
        body = await read_body(request, self._max_body_bytes)
        return decode_object(body) if body else {}


def check_open(*, is_open: bool) -> None:
    """Raise `Forbidden` where clients of the port may not change anything."""
    if not is_open:
        raise Forbidden(
            "this is for operators: ask the ops port, or start the gateway with --control-public to let every "
            "client of this port do it"
        )
