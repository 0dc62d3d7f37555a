"""The public port: Open Inference Protocol v2 over HTTP/JSON, and labels."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.api.answers import JSON_TYPE, json_response
from gateway.api.body import read_body
from gateway.api.door import Answer, InferenceDoor, Outcome
from gateway.errors import GatewayError, Unavailable
from gateway.protocol.json_codec import decode_object, refuse_binary
from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.serving.feedback import Feedback
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.trace_context import TRACEPARENT
from gateway.types import JsonObject, TensorSpec

PREDICTION_ID = "Prediction-Id"
FEEDBACK_BODY_LIMIT = 16 * 1024
CLIENT_LEFT = 499
"""nginx's status for it; nobody reads it."""
PLATFORM = "onnxruntime_onnx"


class AwaitedCall(Call):
    """A request whose answer an endpoint waits for.

    The answer is written at once: whether that can be done belongs to the trace, which is made with the batch's record.
    """

    def __init__(self, door: InferenceDoor, target: tuple[str, str | None]) -> None:
        self._door = door
        self.target: tuple[str, str | None] = target
        self.written: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answer(self, outcome: Outcome) -> None:
        """Turn the outcome into an answer, once."""
        if not self.is_cancelled and not self.is_answered:
            # Whoever calls this can still answer with an error if it raises.
            answer = self._door.answer(self.target[0], outcome, self)
            self.is_answered = True
            self.written.set_result(answer)


class InferenceApi:
    """Endpoints over one data plane."""

    def __init__(
        self, plane: DataPlane, routes: RouteTable, feedback: Feedback, metrics: GatewayMetrics, max_body_bytes: int
    ) -> None:
        self._plane = plane
        self._registry: Registry = plane.registry
        self._route_table = routes
        self._feedback = feedback
        self._max_body_bytes = max_body_bytes
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
        return json_response({"name": "model-gateway", "version": __version__, "extensions": []})

    async def live(self, _request: Request) -> Response:
        """`GET /v2/health/live`: the process answers."""
        return json_response({"live": True})

    async def ready(self, _request: Request) -> Response:
        """`GET /v2/health/ready`: every model is loaded, the rules are known, and no shutdown has begun."""
        problem = self._not_ready()
        if problem is not None:
            return json_response({"ready": False, "error": problem}, Unavailable.status)
        return json_response({"ready": True})

    async def models(self, _request: Request) -> Response:
        """`GET /v2/models` (KServe)."""
        return json_response({"models": sorted({*self._registry.names, *(key.name for key in self._registry.refused)})})

    async def model_metadata(self, request: Request) -> Response:
        """`GET /v2/models/{model}[/versions/{version}]`; without a version, of the one that takes most traffic."""
        version = self._version(request)
        return json_response(
            {
                "name": version.key.name,
                "versions": self._registry.versions(version.key.name),
                "platform": PLATFORM,
                "inputs": [_tensor_metadata(spec) for spec in version.signature.inputs],
                "outputs": [_tensor_metadata(spec) for spec in version.signature.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """`GET .../ready`: 200, 404 for an unknown model, 503 with the reason for one that is not loaded."""
        version = self._version(request)
        return json_response({"name": version.key.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """`POST .../infer`, for what `fastpath.py` leaves to Starlette."""
        model, version = request.path_params["model"], request.path_params.get("version")
        call = AwaitedCall(self.door, (model, version))
        call.traceparent = request.headers.get(TRACEPARENT, "")
        try:
            refuse_binary(request.headers)
            body = await read_body(request, self._max_body_bytes)
            self.door.submit(model, version, body, request.headers, call)
        except GatewayError as error:
            call.answer(error)
        if not await self._is_answered(call, request):
            return Response(status_code=CLIENT_LEFT)
        status, content, prediction_id, retry_after = call.written.result()
        headers = {PREDICTION_ID: prediction_id} if prediction_id else {}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        return Response(content, status, headers, JSON_TYPE)

    async def feedback(self, request: Request) -> Response:
        """`POST /v2/feedback`: a label for a prediction id."""
        document = decode_object(await read_body(request, FEEDBACK_BODY_LIMIT))
        is_new = await self._feedback.accept(document)
        return json_response({"accepted": True, "duplicate": not is_new})

    async def _is_answered(self, call: AwaitedCall, request: Request) -> bool:
        """Wait for the answer; False if the client leaves before it."""
        if call.is_answered:
            return True
        left = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((call.written, left), return_when=asyncio.FIRST_COMPLETED)
            return call.is_answered
        finally:
            # Also on cancellation: the rows of a caller that is gone are not run. Does nothing once it is answered.
            self.door.abandon(call)
            left.cancel()

    def _version(self, request: Request) -> ModelVersion:
        name, version = request.path_params["model"], request.path_params.get("version")
        if version is not None:
            return self._registry.get(name, version)
        route = self._route_table.get(name)
        if route is None:
            return self._registry.latest(name)
        return self._registry.get(name, max(route.variants, key=lambda variant: variant.weight).version)

    def _not_ready(self) -> str | None:
        if self._plane.is_draining:
            return "the gateway is shutting down"
        if self._registry.refused:
            return "not loaded: " + "; ".join(f"{key}: {why}" for key, why in self._registry.refused.items())
        if not self._route_table.is_known:
            return "the routes are not known yet: the store has not answered since the start"
        return None


def _tensor_metadata(spec: TensorSpec) -> JsonObject:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
