"""JSON schemas (draft 2020-12) of what a model takes and gives, in both protocols, and bodies to try it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gateway.protocol.classification import is_classifiable
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.v1_codec import SIGNATURE_NAME
from gateway.runtime.examples import example_row
from gateway.runtime.registry import ModelVersion
from gateway.types import JsonObject, TensorSpec

Schema: TypeAlias = JsonObject


class Protocol(NamedTuple):
    """How one protocol asks for a prediction."""

    name: str
    request: Callable[[ModelVersion], Schema]
    response: Callable[[ModelVersion], Schema]
    examples: Callable[[ModelVersion], dict[str, JsonObject]]
    """Bodies that work, by what they show."""
    has_binary: bool = False
    """Tensors may travel as bytes behind the JSON."""


STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BASE64: Schema = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}


def object_of(**properties: Schema) -> Schema:
    """An object with all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def options_of(**properties: Schema) -> Schema:
    """An object with some of these properties, and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def optional(**properties: Schema) -> Schema:
    """An object that may have any of these properties, or nothing in its place."""
    return {"type": ["object", "null"], "properties": properties}


def list_of(items: Schema) -> Schema:
    """A list of any length."""
    return {"type": "array", "items": items}


def any_of(schemas: Iterable[Schema]) -> Schema:
    """One of several, of which equal ones count once."""
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def element(datatype: str) -> Schema:
    """One value of a tensor."""
    if datatype == BYTES:
        return STRING
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        return _number(np.finfo(dtype))
    limits = np.iinfo(dtype)
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def v2_request(version: ModelVersion) -> Schema:
    """Body of `infer`."""
    tensors = [_tensor(spec) for spec in version.signature.inputs]
    output = object_of(name={"enum": [spec.name for spec in version.signature.outputs]})
    output["properties"]["parameters"] = optional(binary_data={"type": "boolean"}, classification=COUNT)
    schema = object_of(inputs={**list_of(any_of(tensors)), "minItems": len(tensors), "maxItems": len(tensors)})
    schema["properties"] |= {
        "id": {"type": ["string", "null"]},
        "parameters": optional(binary_data_output={"type": "boolean"}),
        "outputs": {"type": ["array", "null"], "items": output},
    }
    return schema


def v2_response(version: ModelVersion) -> Schema:
    """Body of its answer."""
    outputs = version.signature.outputs
    tensors = [*map(_tensor, outputs), *(_classes(spec) for spec in outputs if is_classifiable(spec))]
    schema = object_of(model_name=STRING, model_version=STRING, outputs=list_of(any_of(tensors)))
    schema["properties"]["id"] = STRING
    return schema


def v2_examples(version: ModelVersion) -> dict[str, JsonObject]:
    """One row."""
    tensors = []
    for spec in version.signature.inputs:
        shape, data = example_row(version, spec)
        tensors.append({"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data})
    return {"tensors": {"inputs": tensors}}


def v1_request(version: ModelVersion) -> Schema:
    """Body of `:predict`."""
    inputs, rows = version.signature.inputs, _max_rows(version)
    values = {
        spec.name: any_of((STRING, BASE64)) if spec.datatype == BYTES else element(spec.datatype) for spec in inputs
    }
    columns = {spec.name: _nested(values[spec.name], spec.shape, rows) for spec in inputs}
    properties: JsonObject = {"signature_name": {"const": SIGNATURE_NAME}, "inputs": _by_input(columns)}
    if _has_rows(version):
        row = _by_input({spec.name: _nested(values[spec.name], spec.shape[1:]) for spec in inputs})
        properties["instances"] = _nested(row, inputs[0].shape[:1], rows)
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "oneOf": [{"required": [form]} for form in ("instances", "inputs") if form in properties],
    }


def v1_response(version: ModelVersion) -> Schema:
    """Body of its answer: predictions for instances, outputs for inputs."""
    outputs = version.signature.outputs
    forms = []
    if all(spec.shape for spec in outputs):
        row = _by_output({spec.name: _nested(element(spec.datatype), spec.shape[1:]) for spec in outputs})
        forms.append(object_of(predictions=list_of(row)))
    columns = _by_output({spec.name: _nested(element(spec.datatype), spec.shape) for spec in outputs})
    return any_of([*forms, object_of(outputs=columns)])


def v1_examples(version: ModelVersion) -> dict[str, JsonObject]:
    """One row as an instance, where there are rows, and as columns."""
    columns: JsonObject = {}
    for spec in version.signature.inputs:
        shape, data = example_row(version, spec)
        columns[spec.name] = np.array(data, dtype=object).reshape(shape).tolist()
    inputs: Any = next(iter(columns.values())) if len(columns) == 1 else columns
    examples = {"inputs": {"inputs": inputs}}
    if _has_rows(version):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        examples = {"instances": {"instances": inputs if len(columns) == 1 else rows}, **examples}
    return examples


V2 = Protocol("v2", v2_request, v2_response, v2_examples, has_binary=True)
V1 = Protocol("v1", v1_request, v1_response, v1_examples)


def _max_rows(version: ModelVersion) -> int | None:
    """Most rows of a request, where they lie on axis 0."""
    return version.config.batching.max_request_rows if version.signature.has_rows_first else None


def _has_rows(version: ModelVersion) -> bool:
    """Whether the inputs can be given row by row."""
    signature = version.signature
    extents = {spec.shape[:1] for spec in signature.inputs}
    return len(extents) == 1 and () not in extents and (signature.has_rows_first or not signature.is_batchable)


def _tensor(spec: TensorSpec) -> Schema:
    extents = {**list_of({"type": "integer", "minimum": 0}), "minItems": len(spec.shape), "maxItems": len(spec.shape)}
    data = list_of(any_of((element(spec.datatype), {"type": "array"})))
    return object_of(
        name={"const": spec.name},
        shape={**extents, "description": f"{list(spec.shape)}, where -1 is any extent"},
        datatype={"const": spec.datatype},
        data={**data, "description": "In row-major order: flat, or nested as the shape says"},
    )


def _classes(spec: TensorSpec) -> Schema:
    """An output of which classes were asked for."""
    shape = list_of({"type": "integer"})
    return object_of(name={"const": spec.name}, shape=shape, datatype={"const": BYTES}, data=list_of(STRING))


def _number(limits: np.finfo[Any]) -> Schema:
    """What rounds to a finite number of the datatype: all that is less than half a step beyond the greatest."""
    beyond = float(limits.max) + 2.0 ** (limits.maxexp - limits.nmant - 2)
    return {"type": "number"} | ({"exclusiveMinimum": -beyond, "exclusiveMaximum": beyond} if beyond < math.inf else {})


def _nested(value: Schema, shape: tuple[int, ...], rows: int | None = None) -> Schema:
    """Lists nested as the shape says; `rows` limits the first dimension where it is variable."""
    if not shape:
        return value
    schema = list_of(_nested(value, shape[1:]))
    if shape[0] != -1:
        return {**schema, "minItems": shape[0], "maxItems": shape[0]}
    return schema if rows is None else {**schema, "minItems": 1, "maxItems": rows}


def _by_input(values: dict[str, Schema]) -> Schema:
    """Values by name; of a single input also without the name."""
    by_name = {**object_of(**values), "additionalProperties": False}
    return any_of((*values.values(), by_name)) if len(values) == 1 else by_name


def _by_output(values: dict[str, Schema]) -> Schema:
    """Values by name; of a single output always without the name."""
    return next(iter(values.values())) if len(values) == 1 else object_of(**values)
