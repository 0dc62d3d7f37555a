"""The public port: Open Inference Protocol v2 over HTTP/JSON, and labels."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.api.answers import json_response
from gateway.api.body import read_body
from gateway.api.door import Encode, InferenceDoor
from gateway.api.predicting import predict
from gateway.errors import Unavailable
from gateway.protocol.binary_codec import BINARY_HEADER, encode_response
from gateway.protocol.json_codec import decode_object
from gateway.runtime.registry import Registry
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.serving.feedback import Feedback
from gateway.serving.inventory import EXTENSIONS, REPOSITORY_EXTENSIONS, SERVER_NAME, Inventory
from gateway.telemetry.metrics import GatewayMetrics

FEEDBACK_BODY_LIMIT = 16 * 1024


class InferenceApi:
    """Endpoints over one data plane."""

    def __init__(
        self,
        plane: DataPlane,
        inventory: Inventory,
        feedback: Feedback,
        metrics: GatewayMetrics,
        max_body_bytes: int,
        *,
        control_public: bool,
    ) -> None:
        self._registry: Registry = plane.registry
        self._inventory = inventory
        self._feedback = feedback
        self._max_body_bytes = max_body_bytes
        self._extensions = EXTENSIONS
        if control_public:
            settings = ("logging",) if plane.traces is None else ("logging", "trace")
            self._extensions = (*EXTENSIONS, *settings, *REPOSITORY_EXTENSIONS)
        self.door = InferenceDoor(plane, metrics)

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        return [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models", self.models),
            Route("/v2/feedback", self.feedback, methods=["POST"]),
            *(Route(path, self.model_metadata) for path in (model, version)),
            *(Route(path + "/ready", self.model_ready) for path in (model, version)),
            *(Route(path + "/infer", self.infer, methods=["POST"]) for path in (model, version)),
        ]

    async def server_metadata(self, _request: Request) -> Response:
        """`GET /v2`: only extensions that work are named."""
        return json_response({"name": SERVER_NAME, "version": __version__, "extensions": self._extensions})

    async def live(self, _request: Request) -> Response:
        """`GET /v2/health/live`: the process answers."""
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        """`GET /v2/health/ready`: every model is loaded, the rules are known, and no shutdown has begun."""
        problem = self._inventory.problem()
        if problem is not None:
            return json_response({"ready": False, "error": problem}, Unavailable.status)
        return json_response({"ready": True})

    async def models(self, _request: Request) -> Response:
        """`GET /v2/models` (KServe)."""
        return json_response({"models": self._registry.all_names})

    async def model_metadata(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]`; without a version, of the one that takes most traffic."""
        return json_response(self._inventory.metadata(*model_and_version(request)))

    async def model_ready(self, request: Request) -> Response:
        """`GET .../ready`: 200, 404 for an unknown model, 503 with the reason for one that cannot run."""
        version = self._inventory.version(*model_and_version(request))
        version.require_ready()
        return json_response({"name": version.key.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """`POST .../infer`, for what `fastpath.py` leaves to Starlette."""
        model, version = model_and_version(request)

        def submit(body: bytes, call: Call) -> Encode:
            self.door.submit(model, version, body, request.headers, call, request.headers.get(BINARY_HEADER))
            return encode_response

        return await predict(request, self.door, self._max_body_bytes, submit)

    async def feedback(self, request: Request) -> Response:
        """`POST /v2/feedback`: a label for a prediction id."""
        document = decode_object(await read_body(request, FEEDBACK_BODY_LIMIT))
        is_new = await self._feedback.accept(document)
        return json_response({"accepted": True, "duplicate": not is_new})


def model_and_version(request: Request) -> tuple[str, str | None]:
    """Whom the path names."""
    return request.path_params["model"], request.path_params.get("version")
