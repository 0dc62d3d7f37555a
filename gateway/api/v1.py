"""The public port: the V1 protocol, in TensorFlow Serving's paths. A label is a variant of the model's route."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.api.door import Encode, InferenceDoor
from gateway.api.predicting import predict
from gateway.errors import Unsupported
from gateway.protocol.v1_codec import decode_predict, encode_predict, metadata
from gateway.runtime.registry import ModelVersion
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.serving.inventory import Inventory
from gateway.types import InferenceRequest, JsonObject


class NameConvertor(Convertor[str]):
    """A name that a `:verb` may follow."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        """As it stands."""
        return value

    def to_string(self, value: str) -> str:
        """As it stands."""
        return value


register_url_convertor("name", NameConvertor())


class V1Api:
    """Endpoints over one data plane."""

    def __init__(self, plane: DataPlane, inventory: Inventory, door: InferenceDoor, max_body_bytes: int) -> None:
        self._plane = plane
        self._registry = plane.registry
        self._inventory = inventory
        self._door = door
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        model = "/v1/models/{model:name}"
        whom = (model, model + "/versions/{version:name}", model + "/labels/{label:name}")
        return [
            Route("/v1/models", self.models),
            *(Route(path, self.status) for path in whom),
            *(Route(path + "/metadata", self.metadata) for path in whom),
            *(Route(path + ":predict", self.predict, methods=["POST"]) for path in whom),
            *(
                Route(path + ":{verb:name}", self.other_verb, methods=["POST"], include_in_schema=False)
                for path in whom
            ),
        ]

    async def models(self, _request: Request) -> Response:
        """`GET /v1/models` (KServe)."""
        return json_response({"models": self._registry.all_names})

    async def status(self, request: Request) -> Response:
        """`GET /v1/models/{model}[/versions/{version}|/labels/{label}]`: what KServe and TensorFlow Serving say.

        404 for an unknown model, 503 with the reason for one of which no version is loaded or which cannot run.
        """
        asked = self._version(request)
        asked.require_ready()
        key = asked.key
        is_any = request.path_params.keys() == {"model"}
        versions = self._registry.versions(key.name) if is_any else [key.version]
        states = [_state(version, "AVAILABLE", "OK") for version in versions]
        refused = self._registry.refused.items() if is_any else ()
        states += [_state(other.version, "END", "UNKNOWN", why) for other, why in refused if other.name == key.name]
        return json_response({"name": key.name, "ready": True, "model_version_status": states})

    async def metadata(self, request: Request) -> Response:
        """`GET .../metadata`; without version and label, of the version that takes most traffic."""
        version = self._version(request)
        return json_response(metadata(version.key, version.signature))

    async def predict(self, request: Request) -> Response:
        """`POST ...:predict`; without version and label, the route decides who answers."""
        model, version = request.path_params["model"], request.path_params.get("version")
        label = request.path_params.get("label")

        def submit(body: bytes, call: Call) -> Encode:
            asked = InferenceRequest(model, version, {}, headers=request.headers)
            choice = self._plane.labelled(model, label) if label else self._plane.choose(call, asked, asked.headers)
            # Which datatypes the values are of is known only once it is known who answers.
            call.inputs, form = decode_predict(body, choice.version.signature)
            self._plane.admit_to(choice, call, asked)
            return lambda response: (encode_predict(response, form=form), None)

        return await predict(request, self._door, self._max_body_bytes, submit)

    async def other_verb(self, request: Request) -> Response:
        """`:explain`, `:classify`, `:regress`."""
        raise Unsupported(f"`:{request.path_params['verb']:.40}` is not supported; this gateway answers `:predict`")

    def _version(self, request: Request) -> ModelVersion:
        model, label = request.path_params["model"], request.path_params.get("label")
        if label is not None:
            return self._plane.labelled(model, label).version
        return self._inventory.version(model, request.path_params.get("version"))


def _state(version: str, state: str, code: str, message: str = "") -> JsonObject:
    return {"version": version, "state": state, "status": {"error_code": code, "error_message": message}}
