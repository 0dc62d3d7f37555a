"""Open Inference Protocol v2 requests and responses as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from gateway.errors import InferenceFailed, InvalidRequest, Unsupported
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import Array, InferenceRequest, InferenceResponse, JsonObject, TensorSpec, string_array

BINARY_HEADER = "inference-header-content-length"


def decode_object(body: bytes, path: str = "body") -> JsonObject:
    """The JSON object in `body`. Raises `InvalidRequest`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path}: not JSON: {error} (NaN and Infinity are not JSON either)") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: expected a JSON object, got {_kind(document)}")
    return document


def decode_request(body: bytes, model: str, version: str | None, headers: Mapping[str, str]) -> InferenceRequest:
    """Decode an inference request. Raises `InvalidRequest` naming the field and what was expected."""
    if BINARY_HEADER in headers:
        raise Unsupported("binary tensor data is not supported; send `data` as JSON")
    document = decode_object(body)
    # Numpy takes `true` for 1. Looking for bools element by element is slow, and hardly any body holds one.
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
    document: JsonObject = {"model_name": response.key.name, "model_version": response.key.version}
    if response.id is not None:
        document["id"] = response.id
    document["outputs"] = [_output(spec, array) for spec, array in response.outputs]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _output(spec: TensorSpec, array: Array) -> JsonObject:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        value = array.ravel()[position]
        raise InferenceFailed(f"output {spec.name!r}: data[{position}] is {value}, which JSON cannot hold")
    data = array.ravel().tolist() if spec.datatype == BYTES else np.ascontiguousarray(array).ravel()
    return {"name": spec.name, "shape": array.shape, "datatype": spec.datatype, "data": data}


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
        inputs[name] = _tensor(item, path, has_bools=has_bools)
    return inputs


def _tensor(item: JsonObject, path: str, *, has_bools: bool) -> Array:
    shape = _shape(item.get("shape"), f"{path}.shape")
    datatype = item.get("datatype")
    if not isinstance(datatype, str) or datatype not in NUMPY_DTYPES:
        raise InvalidRequest(f"{path}.datatype: expected one of {', '.join(NUMPY_DTYPES)}, got {datatype!r}")
    data = item.get("data")
    if not isinstance(data, list):
        raise InvalidRequest(f"{path}.data: expected a list, got {_kind(data)}")
    if datatype == BYTES:
        return _strings(data, shape, path)
    array = _numbers(data, datatype, f"{path}.data", has_bools=has_bools)
    _check_extent(array.shape, shape, path)
    return array.reshape(shape)


def _shape(value: Any, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(extent) is int and extent >= 0 for extent in value):
        raise InvalidRequest(f"{path}: expected a list of whole numbers from 0 on, got {value!r:.80}")
    return tuple(value)


def _check_extent(given: tuple[int, ...], shape: tuple[int, ...], path: str) -> None:
    """Data may be flat or nested as the shape says; nothing is allocated before this holds."""
    if given == shape or (len(given) <= 1 and math.prod(given) == math.prod(shape)):
        return
    if len(given) == 1:
        raise InvalidRequest(
            f"{path}.data: {given[0]} values do not fill shape {list(shape)}, which takes {math.prod(shape)}"
        )
    raise InvalidRequest(f"{path}.data: nested as {list(given)}, but shape is {list(shape)}")


def _numbers(data: list[Any], datatype: str, path: str, *, has_bools: bool) -> Array:
    dtype = NUMPY_DTYPES[datatype]
    if not data:
        return np.empty(0, dtype)
    if has_bools and datatype != "BOOL":
        _refuse_bools(data, datatype, path)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{path}: {_first_misfit(data, datatype) or 'rows differ in length'}") from error
    if array.dtype.kind not in _ACCEPTED_KINDS[dtype.kind]:
        misfit = _first_misfit(data, datatype)
        raise InvalidRequest(f"{path}: {misfit or f'expected {datatype} numbers'}")
    return _narrow(array, dtype, datatype, path)


_ACCEPTED_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}


def _narrow(array: Array, dtype: np.dtype[Any], datatype: str, path: str) -> Array:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        outside = (array < limits.min) | (array > limits.max)
    elif dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrowed = array.astype(dtype)
        outside = ~np.isfinite(narrowed)
    else:
        return array
    if outside.any():
        position = int(np.flatnonzero(outside)[0])
        raise InvalidRequest(f"{path}[{position}]: {array.ravel()[position]} does not fit {datatype}")
    return array.astype(dtype) if dtype.kind in "iu" else narrowed


def _strings(data: list[Any], shape: tuple[int, ...], path: str) -> Array:
    flat = _flatten(data)
    for position, value in enumerate(flat):
        if not isinstance(value, str):
            raise InvalidRequest(f"{path}.data[{position}]: expected a BYTES string, got {_kind(value)}")
    _check_extent((len(flat),), shape, path)
    return string_array(flat, shape)


def _refuse_bools(data: list[Any], datatype: str, path: str) -> None:
    for position, value in enumerate(_flatten(data)):
        if isinstance(value, bool):
            raise InvalidRequest(f"{path}[{position}]: expected a {datatype} number, got a bool")


def _first_misfit(data: list[Any], datatype: str) -> str | None:
    """What the first element that is not of the datatype is, for the message."""
    expected: tuple[type, ...] = {"BOOL": (bool,), "FP": (int, float)}.get(
        datatype if datatype == "BOOL" else datatype[:2], (int,)
    )
    for position, value in enumerate(_flatten(data)):
        if not isinstance(value, expected) or (isinstance(value, bool) and datatype != "BOOL"):
            return f"element {position}: expected {datatype}, got {_kind(value)}"
    return None


def _flatten(data: list[Any]) -> list[Any]:
    """Nested lists flattened level by level, so that depth costs no recursion."""
    while any(isinstance(value, list) for value in data):
        data = [leaf for value in data for leaf in (value if isinstance(value, list) else [value])]
    return data


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
