"""The V1 protocol in JSON: rows (`instances`) or columns (`inputs`), as TensorFlow Serving and KServe take them.

Source: TensorFlow Serving's "RESTful API" (https://www.tensorflow.org/tfx/serving/api_rest). A request names no
datatypes: values are converted to what the signature of the version that answers declares, as strictly as in v2.
"""

from __future__ import annotations

import base64
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import orjson

from gateway.errors import InvalidRequest, shown
from gateway.protocol.datatypes import BYTES
from gateway.protocol.json_codec import check_finite, decode_object, flat_values, numbers, strings
from gateway.types import Array, InferenceResponse, JsonObject, ModelKey, Signature, TensorSpec

Form: TypeAlias = Literal["instances", "inputs"]
"""How a request holds its values, and so how they are answered: by row or by column."""

SIGNATURE_NAME = "serving_default"
KEYS = ("instances", "inputs", "signature_name")
BASE64 = "b64"
"""The key of an object that stands for a string, by its base64."""

TENSORFLOW_TYPES = {
    "BOOL": "DT_BOOL",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    BYTES: "DT_STRING",
}


class Column(NamedTuple):
    """What a request holds for one input, and where."""

    value: Any
    path: str
    field: str = ""
    """Of each row, where rows are objects."""


def decode_predict(body: bytes, signature: Signature) -> tuple[dict[str, Array], Form]:
    """The inputs of a `:predict` request. Raises `InvalidRequest` naming the field and what was expected."""
    document = decode_object(body)
    for key in document:
        if key not in KEYS:
            raise InvalidRequest(f"unknown key {shown(key)}; known keys: {', '.join(KEYS)}")
    name = document.get("signature_name", SIGNATURE_NAME)
    if name != SIGNATURE_NAME:
        raise InvalidRequest(f"signature_name: expected {SIGNATURE_NAME!r}, the only one there is, got {shown(name)}")
    if ("instances" in document) == ("inputs" in document):
        got = "both" if "inputs" in document else "neither"
        raise InvalidRequest(f"body: expected either instances (rows) or inputs (columns), got {got}")
    form: Form = "instances" if "instances" in document else "inputs"
    columns = _by_row if form == "instances" else _by_column
    # An array of numbers takes `true` for 1. Looking for bools is slow, and hardly any body holds one.
    has_bools = b"true" in body or b"false" in body
    found = columns(document[form], signature)
    return {spec.name: _tensor(found[spec.name], spec, has_bools=has_bools) for spec in signature.inputs}, form


def encode_predict(response: InferenceResponse, form: Form) -> bytes:
    """The body of an answer: bare values for a model with one output, objects by output name for several.

    Raises `InferenceFailed` for values that JSON cannot hold, `InvalidRequest` for outputs that are no rows where rows
    were asked for.
    """
    for spec, values in response.outputs:
        check_finite(spec, values)
    columns = {spec.name: _plain(spec, values) for spec, values in response.outputs}
    if form == "inputs":
        outputs = columns if len(columns) > 1 else next(iter(columns.values()))
        return orjson.dumps({"outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    if any(not values.shape for _, values in response.outputs) or len({len(column) for column in columns.values()}) > 1:
        shapes = ", ".join(f"{spec.name!r} {list(values.shape)}" for spec, values in response.outputs)
        raise InvalidRequest(f"instances: the outputs differ in rows (axis 0): {shapes}; send inputs instead")
    rows: Any = next(iter(columns.values()))
    if len(columns) > 1:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def metadata(key: ModelKey, signature: Signature) -> JsonObject:
    """`GetModelMetadataResponse` of TensorFlow Serving, as JSON."""
    definition = {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": key.name, "signature_name": "", "version": key.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: definition}}},
    }


def _by_row(rows: Any, signature: Signature) -> dict[str, Column]:
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest(f"instances: expected a non-empty list of rows, got {shown(rows)}")
    if signature.is_batchable and not signature.has_rows_first:
        raise InvalidRequest("instances: the rows of this model do not all lie on axis 0; send inputs instead")
    for spec in signature.inputs:
        if not spec.shape:
            raise InvalidRequest(f"instances: input {spec.name!r} is a single value without rows; send inputs instead")
    named = [_by_name(row, signature, f"instances[{index}]") for index, row in enumerate(rows)]
    is_named = named[0] is rows[0]
    return {
        spec.name: Column([row[spec.name] for row in named], "instances", f".{spec.name}" if is_named else "")
        for spec in signature.inputs
    }


def _by_column(value: Any, signature: Signature) -> dict[str, Column]:
    columns = _by_name(value, signature, "inputs")
    is_named = columns is value
    return {name: Column(column, f"inputs.{name}" if is_named else "inputs") for name, column in columns.items()}


def _by_name(value: Any, signature: Signature, path: str) -> JsonObject:
    """Values by input name; one without a name is for the only input there is."""
    names = [spec.name for spec in signature.inputs]
    if isinstance(value, dict) and value.keys() != {BASE64}:
        for name in names:
            if name not in value:
                raise InvalidRequest(f"{path}: missing input {name!r}; the model's inputs: {', '.join(names)}")
        for name in value:
            if name not in names:
                raise InvalidRequest(f"{path}: unknown input {shown(name)}; the model's inputs: {', '.join(names)}")
        return value
    if len(names) != 1:
        raise InvalidRequest(f"{path}: expected an object with the inputs {', '.join(names)}, got {shown(value)}")
    return {names[0]: value}


def _tensor(column: Column, spec: TensorSpec, *, has_bools: bool) -> Array:
    try:
        return _array(column.value, spec, column.path + column.field, has_bools=has_bools)
    except InvalidRequest:
        if len(spec.shape) > 1 and isinstance(column.value, list):
            _blame_row(column, spec, has_bools=has_bools)
        raise


def _blame_row(column: Column, spec: TensorSpec, *, has_bools: bool) -> None:
    """Raise what is wrong with the first row that is wrong on its own: that names the row, which the whole cannot."""
    row_spec = spec._replace(shape=spec.shape[1:])
    for index, row in enumerate(column.value):
        _array(row, row_spec, f"{column.path}[{index}]{column.field}", has_bools=has_bools)


def _array(value: Any, spec: TensorSpec, path: str, *, has_bools: bool) -> Array:
    shape = _shape(value, spec, path)
    flat = flat_values(value, shape, path) if shape else [value]
    if spec.datatype == BYTES:
        texts = [_text(item, f"{path}[{index}]") if type(item) is dict else item for index, item in enumerate(flat)]
        return strings(texts, shape, path)
    return numbers(flat, spec.datatype, path, has_bools=has_bools).reshape(shape)


def _shape(value: Any, spec: TensorSpec, path: str) -> tuple[int, ...]:
    """The extents of nested lists, told by the first of each; as deep as the model takes them and no deeper."""
    extents: list[int] = []
    for expected in spec.shape:
        if not isinstance(value, list) or expected not in (-1, len(value)):
            got = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
            wanted = f"lists nested as shape {list(spec.shape)} says (-1 is any)"
            raise InvalidRequest(f"{path}: expected {wanted}, got {got} on axis {len(extents)}")
        extents.append(len(value))
        value = value[0] if value else []
    return tuple(extents)


def _text(value: JsonObject, path: str) -> str:
    content = value.get(BASE64) if len(value) == 1 else None
    try:
        return base64.b64decode(content, validate=True).decode()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InvalidRequest(f'{path}: expected a string or {{"b64": "<base64 of UTF-8>"}}') from None


def _plain(spec: TensorSpec, values: Array) -> Any:
    """What orjson writes, whole or row by row."""
    # A float of numpy's keeps its datatype, and with it the shortest way of writing it. Of numpy's integers there are
    # more types than orjson knows.
    if spec.datatype == BYTES or (values.ndim < 2 and values.dtype.kind != "f"):
        return values.tolist()
    return np.ascontiguousarray(values) if values.ndim else values[()]


def _tensor_info(spec: TensorSpec) -> JsonObject:
    dimensions = [{"size": str(extent), "name": ""} for extent in spec.shape]
    shape = {"dim": dimensions, "unknown_rank": False}
    return {"dtype": TENSORFLOW_TYPES[spec.datatype], "tensor_shape": shape, "name": spec.name}
