"""The OpenAPI 3.1 document of the public port: its routes, what `operations.py` says of them, and the loaded models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from inspect import cleandoc

from starlette.routing import BaseRoute, Route

from gateway import __version__
from gateway.api.door import BINARY_TYPE
from gateway.api.operations import OPERATIONS, Operation
from gateway.api.predicting import PREDICTION_ID
from gateway.api.schemas import COUNT, STRING, V1, V2, Protocol, Schema, any_of, object_of
from gateway.errors import GatewayError
from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.route_table import RouteTable
from gateway.types import JsonObject

MODEL = "{model}"
JSON = "application/json"
DESCRIPTION = """\
Predictions from ONNX models: the Open Inference Protocol v2, and V1 as TensorFlow Serving and KServe speak it.
The paths of predictions are those of the models that are loaded now."""
CONTENT_ENCODING = "Content-Encoding"
LENGTH = "Inference-Header-Content-Length"
JSON_LENGTH = {"description": "Bytes of JSON, where the bytes of tensors follow it.", "schema": COUNT}
BYTES_BEHIND_JSON = {
    # Not a parameter of the operation: with a body that is JSON alone it would have to be left out.
    "description": f"JSON, then the bytes of tensors; the header {LENGTH} says where the JSON ends."
}
ACCEPT_ENCODING = {"description": "The codings that are read, where Content-Encoding names another.", "schema": STRING}
RETRY_AFTER = {"description": "Seconds after which the same request may succeed.", "schema": {"type": "integer"}}


def openapi(routes: Iterable[BaseRoute], registry: Registry, table: RouteTable) -> JsonObject:
    """The document, for the routes that are to be in it."""
    writer = Writer(registry, table)
    paths: JsonObject = {}
    for method, path in described(routes):
        for concrete, operation in writer.operations(path, OPERATIONS[method, path]):
            paths.setdefault(concrete, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "model-gateway", "version": __version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": writer.schemas, "responses": writer.responses},
    }


def described(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Verb and path of each route that is to be in the document. What answers GET answers HEAD, which goes without."""
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield method, route.path_format


class Writer:
    """Writes operations, and collects the schemas and responses that they refer to."""

    def __init__(self, registry: Registry, table: RouteTable) -> None:
        self._registry = registry
        self._table = table
        self.schemas: JsonObject = {"Error": object_of(error=STRING)}
        self.responses: JsonObject = {}
        for protocol in (V1, V2):
            for name in registry.names:
                self._add_schemas(protocol, name)

    def operations(self, path: str, operation: Operation) -> Iterator[tuple[str, JsonObject]]:
        """The operation by path: one for each model where the model decides what it takes."""
        if not isinstance(operation.answer, Protocol):
            answer = {"description": "Success", "content": _content(operation.answer, operation.media_type)}
            written = self._written(path, operation, operation.id, answer)
            if operation.body is not None:
                required = operation.is_body_required
                written["requestBody"] = {"required": required, "content": _content(operation.body)}
            yield path, written
            return
        for name in self._registry.names:
            yield path.replace(MODEL, name), self._prediction(path, operation, operation.answer, name)

    def _prediction(self, path: str, operation: Operation, protocol: Protocol, name: str) -> JsonObject:
        version = self._table.leading(name)
        headers: JsonObject = {
            PREDICTION_ID: {"description": "What a label is sent for.", "schema": STRING},
            CONTENT_ENCODING: {"description": "Of a long answer, as Accept-Encoding asks for it.", "schema": STRING},
        }
        answered = _content(_reference(f"{name}.{protocol.name}.response"))
        answer: JsonObject = {"description": "The prediction", "headers": headers, "content": answered}
        content = _content(_reference(f"{name}.{protocol.name}.request"))
        examples = protocol.examples(version)
        content[JSON]["examples"] = {form: {"summary": form, "value": body} for form, body in examples.items()}
        written = self._written(path.replace(MODEL, name), operation, f"{operation.id}.{name}", answer, name)
        if protocol.has_binary:
            headers[LENGTH] = JSON_LENGTH
            content |= _content(BYTES_BEHIND_JSON, BINARY_TYPE)
            answered |= _content(BYTES_BEHIND_JSON, BINARY_TYPE)
        description = _description(version)
        return {**written, "description": description, "requestBody": {"required": True, "content": content}}

    def _written(
        self, path: str, operation: Operation, operation_id: str, answer: JsonObject, name: str | None = None
    ) -> JsonObject:
        responses: JsonObject = {str(HTTPStatus.OK.value): answer}
        for error in operation.errors:
            responses[str(error.status)] = self._response(error)
        parameters = [self._parameter(parameter, name) for parameter in ("model", "version", "label")]
        return {
            "operationId": operation_id,
            "tags": [operation.tag],
            "summary": operation.summary,
            "parameters": [parameter for parameter in parameters if f"{{{parameter['name']}}}" in path],
            "responses": responses,
        }

    def _parameter(self, parameter: str, name: str | None) -> JsonObject:
        known = {
            "model": self._registry.names,
            "version": self._registry.versions(name) if name else None,
            "label": self._labels(name) if name else None,
        }[parameter]
        schema = STRING if known is None else {"type": "string", "enum": known}
        return {"name": parameter, "in": "path", "required": True, "schema": schema}

    def _labels(self, name: str) -> list[str]:
        route = self._table.get(name)
        return [variant.name for variant in route.variants] if route else []

    def _response(self, error: type[GatewayError]) -> JsonObject:
        name = error.__name__
        written: JsonObject = {"description": cleandoc(error.__doc__ or ""), "content": _content(_reference("Error"))}
        if error.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            written["headers"] = {"Retry-After": RETRY_AFTER}
        if error.status == HTTPStatus.NOT_IMPLEMENTED:
            written["headers"] = {"Accept-Encoding": ACCEPT_ENCODING}
        self.responses[name] = written
        return {"$ref": f"#/components/responses/{name}"}

    def _add_schemas(self, protocol: Protocol, name: str) -> None:
        versions = [self._registry.get(name, number) for number in self._registry.versions(name)]
        self.schemas[f"{name}.{protocol.name}.request"] = any_of(map(protocol.request, versions))
        self.schemas[f"{name}.{protocol.name}.response"] = any_of(map(protocol.response, versions))


def _content(schema: Schema, media_type: str = JSON) -> JsonObject:
    return {media_type: {"schema": schema}}


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _description(version: ModelVersion) -> str:
    """What the model is for, and what stands in which place of its inputs."""
    lines = [version.config.description]
    features = version.manifest.features if version.manifest else ()
    for spec in version.signature.inputs:
        columns = sorted((feature.column, feature.name) for feature in features if feature.input == spec.name)
        if columns:
            lines.append(f"{spec.name}: {', '.join(name for _, name in columns)}")
    return "\n\n".join(filter(None, lines))
