"""Open Inference Protocol v2 requests and responses as JSON."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.errors import InferenceFailed, InvalidRequest, Unsupported, shown
from gateway.protocol import row_texts
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.parameters import check_values
from gateway.types import Array, InferenceRequest, InferenceResponse, JsonObject, TensorSpec, string_array

BINARY_HEADER = "inference-header-content-length"
MAX_DIMENSIONS = 64
"""What numpy can hold."""


def decode_object(body: bytes, path: str = "body") -> JsonObject:
    """The JSON object in `body`. Raises `InvalidRequest`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path}: not JSON: {error} (NaN and Infinity are not JSON either)") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: expected a JSON object, got {_kind(document)}")
    return document


def refuse_binary(headers: Mapping[str, str]) -> None:
    """Raise `Unsupported` for a body that is more than its JSON."""
    if BINARY_HEADER in headers:
        raise Unsupported("binary tensor data is not supported; send `data` as JSON")


def decode_request(body: bytes, model: str, version: str | None, headers: Mapping[str, str]) -> InferenceRequest:
    """Decode an inference request. Raises `InvalidRequest` naming the field and what was expected."""
    refuse_binary(headers)
    document = decode_object(body)
    # An array of numbers takes `true` for 1. Looking for bools is slow, and hardly any body holds one.
    has_bools = b"true" in body or b"false" in body
    return InferenceRequest(
        model=model,
        version=version,
        inputs=_inputs(document.get("inputs"), has_bools=has_bools),
        id=_optional(document, "id", str),
        outputs=_requested_outputs(document.get("outputs")),
        parameters=_parameters(document, "parameters"),
        headers=headers,
    )


def encode_response(response: InferenceResponse) -> bytes:
    """The response body. Raises `InferenceFailed` for values that JSON cannot hold."""
    body = row_texts.encode(response)
    if body is not None:
        return body
    document: JsonObject = {"model_name": response.key.name, "model_version": response.key.version}
    if response.id is not None:
        document["id"] = response.id
    document["outputs"] = [_output(spec, values) for spec, values in response.outputs]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _output(spec: TensorSpec, values: Array) -> JsonObject:
    check_finite(spec, values)
    data = values.ravel().tolist() if spec.datatype == BYTES else np.ascontiguousarray(values).ravel()
    return {"name": spec.name, "shape": values.shape, "datatype": spec.datatype, "data": data}


def check_finite(spec: TensorSpec, values: Array) -> None:
    """Raise `InferenceFailed` for an output that JSON cannot hold."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        position = int(np.flatnonzero(~np.isfinite(values))[0])
        value = values.ravel()[position]
        raise InferenceFailed(f"output {spec.name!r}: data[{position}] is {value}, which JSON cannot hold")


def _inputs(value: Any, *, has_bools: bool) -> dict[str, Array]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest(f"inputs: expected a non-empty list of tensors, got {_kind(value)}")
    inputs: dict[str, Array] = {}
    for index, item in enumerate(value):
        path = f"inputs[{index}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{path}: expected an object, got {_kind(item)}")
        name = item.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"{path}.name: expected a string, got {_kind(name)}")
        if name in inputs:
            raise InvalidRequest(f"{path}.name: input {name!r} occurs twice")
        if "binary_data_size" in _parameters(item, f"{path}.parameters"):
            raise Unsupported(f"{path}: binary tensor data is not supported; send `data` as JSON")
        inputs[name] = decode_tensor(item, path, has_bools=has_bools)
    return inputs


def decode_tensor(item: JsonObject, path: str, *, has_bools: bool) -> Array:
    """One tensor with `data`. Raises `InvalidRequest`. `has_bools`: the text may hold `true` or `false`."""
    shape = decode_shape(item.get("shape"), f"{path}.shape")
    datatype = item.get("datatype")
    if not isinstance(datatype, str) or datatype not in NUMPY_DTYPES:
        raise InvalidRequest(f"{path}.datatype: expected one of {', '.join(NUMPY_DTYPES)}, got {shown(datatype)}")
    data = item.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"{path}.data: expected a list, got {_kind(data)}")
    flat = flat_values(data, shape, f"{path}.data")
    try:
        if datatype == BYTES:
            return strings(flat, shape, f"{path}.data")
        return numbers(flat, datatype, f"{path}.data", has_bools=has_bools).reshape(shape)
    except ValueError as error:
        # An extent of 0 lets any other pass, however large.
        raise InvalidRequest(f"{path}.shape: {error}") from error


def decode_shape(value: Any, path: str) -> tuple[int, ...]:
    """The extents. Raises `InvalidRequest`."""
    if not isinstance(value, list) or not all(type(extent) is int and extent >= 0 for extent in value):
        raise InvalidRequest(f"{path}: expected a list of whole numbers from 0 on, got {shown(value)}")
    if len(value) > MAX_DIMENSIONS:
        raise InvalidRequest(f"{path}: at most {MAX_DIMENSIONS} dimensions, got {len(value)}")
    return tuple(value)


def flat_values(data: list[Any], shape: tuple[int, ...], path: str) -> list[Any]:
    """The elements in row-major order, of data that is flat or nested as the shape says.

    One level of lists is opened for each dimension and nothing else is allocated, so that neither deep nesting nor a
    huge shape costs more than reading the body did.
    """
    if shape and data and type(data[0]) is list:
        for axis, extent in enumerate(shape):
            rows = [data] if axis == 0 else data
            if not set(map(type, rows)) <= {list} or not set(map(len, rows)) <= {extent}:
                raise InvalidRequest(f"{path}: is not nested as shape {list(shape)} says (axis {axis})")
            data = list(chain.from_iterable(rows))
    size = math.prod(shape)
    if len(data) != size:
        raise InvalidRequest(f"{path}: {len(data)} values do not fill shape {list(shape)}, which takes {size}")
    return data


# `array` takes only what fits. Numpy would guess: one long string among numbers, and each of them takes as much room.
_ARRAY_CODES = {"i": "q", "u": "Q", "f": "d"}


def numbers(flat: list[Any], datatype: str, path: str, *, has_bools: bool) -> Array:
    """The values as a flat array of the datatype. Raises `InvalidRequest` naming the first that is none.

    `has_bools` is False where the body is known to hold neither `true` nor `false`.
    """
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "b":
        if not set(map(type, flat)) <= {bool}:
            raise _misfit(flat, datatype, path)
        return np.array(flat, dtype)
    if has_bools and bool in set(map(type, flat)):
        raise _misfit(flat, datatype, path)
    try:
        wide = np.asarray(array(_ARRAY_CODES[dtype.kind], flat))
    except (TypeError, OverflowError) as error:
        raise _misfit(flat, datatype, path) from error
    return narrow(wide, datatype, path)


def narrow(wide: Array, datatype: str, path: str) -> Array:
    """Numbers as the datatype has them. Raises `InvalidRequest` naming the first that does not fit."""
    dtype = NUMPY_DTYPES[datatype]
    with np.errstate(over="ignore"):
        narrowed = wide.astype(dtype)
    outside = ~np.isfinite(narrowed) if dtype.kind == "f" else narrowed != wide
    if outside.any():
        position = int(np.flatnonzero(outside)[0])
        raise InvalidRequest(f"{path}[{position}]: {wide[position]} does not fit {datatype}")
    return narrowed


def _misfit(flat: list[Any], datatype: str, path: str) -> InvalidRequest:
    """Names the first element that is not of the datatype."""
    expected = (bool,) if datatype == "BOOL" else (int, float) if datatype.startswith("FP") else (int,)
    for position, value in enumerate(flat):
        if type(value) not in expected:
            got = str(value) if type(value) in {int, float} else _kind(value)
            return InvalidRequest(f"{path}[{position}]: expected {datatype}, got {got}")
    limits = np.iinfo(NUMPY_DTYPES[datatype])
    position, value = next((p, v) for p, v in enumerate(flat) if not limits.min <= v <= limits.max)
    return InvalidRequest(f"{path}[{position}]: {value} does not fit {datatype}")


def strings(flat: list[Any], shape: tuple[int, ...], path: str) -> Array:
    """The values as a BYTES tensor. Raises `InvalidRequest` naming the first that is no string."""
    for position, value in enumerate(flat):
        if not isinstance(value, str):
            raise InvalidRequest(f"{path}[{position}]: expected a BYTES string, got {_kind(value)}")
    return string_array(flat, shape)


def _requested_outputs(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidRequest(f"outputs: expected a list, got {_kind(value)}")
    names: list[str] = []
    for index, item in enumerate(value):
        path = f"outputs[{index}]"
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(f"{path}.name: expected an object with the name of an output")
        if name in names:
            raise InvalidRequest(f"{path}.name: output {name!r} occurs twice")
        if _parameters(item, f"{path}.parameters").get("binary_data"):
            raise Unsupported(f"{path}: binary tensor data is not supported; leave `binary_data` out")
        names.append(name)
    return tuple(names) or None


def _parameters(item: JsonObject, path: str) -> JsonObject:
    value = item.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: expected an object, got {_kind(value)}")
    check_values(value, path)
    if value.get("binary_data_output"):
        raise Unsupported(f"{path}: binary tensor data is not supported; leave `binary_data_output` out")
    return value


def _optional(item: JsonObject, name: str, kind: type[str]) -> str | None:
    value = item.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name}: expected a string, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a bool", int: "a number", float: "a number"}
    if value is None:
        return "null or nothing"
    if isinstance(value, list) and not value:
        return "an empty list"
    return names[type(value)]
