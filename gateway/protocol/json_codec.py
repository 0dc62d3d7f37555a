"""Open Inference Protocol v2 requests and responses as JSON. The tensors of a request may also be bytes behind it."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.errors import InferenceFailed, InvalidRequest, shown
from gateway.protocol import row_texts
from gateway.protocol.classification import class_count
from gateway.protocol.datatypes import BF16, BYTES, MAX_DIMENSIONS, NUMPY_DTYPES
from gateway.protocol.parameters import check_values
from gateway.protocol.raw_tensor import RawParts, decode_raw, unknown_datatype
from gateway.types import Array, InferenceRequest, InferenceResponse, JsonObject, OutputForm, TensorSpec, string_array

BINARY_OUTPUT = "binary_data_output"
BINARY_SIZE = "binary_data_size"
JSON_FORM = OutputForm()
NO_JSON_NUMBER = re.compile("-?(?:NaN|Infinity|nan|inf)")


def decode_object(body: bytes, path: str = "body") -> JsonObject:
    """The JSON object in `body`. Raises `InvalidRequest`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path}: not JSON: {_no_json_number(error.doc, error.pos) or error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path}: expected a JSON object, got {_kind(document)}")
    return document


def _no_json_number(text: str, position: int) -> str | None:
    """What to do about NaN or infinity, if it is that which stands at a position of the text, or behind its sign."""
    found = NO_JSON_NUMBER.match(text, position - (text[position - 1 : position] == "-"))
    if found is None:
        return None
    start = text.rfind('"data"', 0, position)
    # However the numbers are nested, there are as many commas before one as numbers.
    index = f"data[{text.count(',', start, found.start())}]" if start >= 0 else f"character {found.start()}"
    return f"{index} is {found[0]}, which JSON cannot hold; v2 takes it as binary tensor data"


def decode_request(
    body: bytes,
    model: str,
    version: str | None,
    headers: Mapping[str, str],
    parts: RawParts | None = None,
) -> InferenceRequest:
    """Decode an inference request; `parts` are the bytes behind its JSON.

    Raises `InvalidRequest` naming the field and what was expected, `Unsupported` for tensors in shared memory.
    """
    document = decode_object(body)
    # An array of numbers takes `true` for 1. Looking for bools is slow, and hardly any body holds one.
    has_bools = b"true" in body or b"false" in body
    parameters = _parameters(document, "parameters")
    outputs, forms = _requested_outputs(document.get("outputs"), parameters)
    return InferenceRequest(
        model=model,
        version=version,
        inputs=_inputs(document.get("inputs"), parts, has_bools=has_bools),
        id=_optional(document, "id", str),
        outputs=outputs,
        forms=forms,
        parameters=parameters,
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
    document["outputs"] = [output_document(spec, values) for spec, values in response.outputs]
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def output_document(spec: TensorSpec, values: Array) -> JsonObject:
    """One output, for orjson with `OPT_SERIALIZE_NUMPY`. Raises `InferenceFailed` for values that JSON cannot hold."""
    check_finite(spec, values)
    data = values.ravel().tolist() if spec.datatype == BYTES else np.ascontiguousarray(values).ravel()
    return {"name": spec.name, "shape": values.shape, "datatype": spec.datatype, "data": data}


def check_finite(spec: TensorSpec, values: Array) -> None:
    """Raise `InferenceFailed` for an output that JSON cannot hold."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        position = int(np.flatnonzero(~np.isfinite(values))[0])
        value = values.ravel()[position]
        raise InferenceFailed(
            f"output {spec.name!r}: data[{position}] is {value}, which JSON cannot hold; "
            "v2 gives it as binary tensor data (`binary_data_output`)"
        )


def _inputs(value: Any, parts: RawParts | None, *, has_bools: bool) -> dict[str, Array]:
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
        parameters = _parameters(item, f"{path}.parameters")
        if BINARY_SIZE in parameters:
            inputs[name] = _binary_tensor(item, path, parameters[BINARY_SIZE], parts)
        else:
            inputs[name] = decode_tensor(item, path, has_bools=has_bools)
    if parts is not None:
        parts.close()
    return inputs


def _binary_tensor(item: JsonObject, path: str, size: Any, parts: RawParts | None) -> Array:
    """One tensor whose bytes are the next behind the JSON."""
    where = f"{path}.parameters.{BINARY_SIZE}"
    if "data" in item:
        raise InvalidRequest(f"{where}: the tensor has `data` as well; send one of the two")
    if parts is None:
        raise InvalidRequest(f"{where}: nothing says where the bytes begin; send Inference-Header-Content-Length")
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"{where}: expected a whole number of bytes, got {shown(size)}")
    shape = decode_shape(item.get("shape"), f"{path}.shape")
    datatype = item.get("datatype")
    if not isinstance(datatype, str):
        raise unknown_datatype(datatype, path)
    return decode_raw(datatype, shape, parts.take(size, where), path)


def decode_tensor(item: JsonObject, path: str, *, has_bools: bool) -> Array:
    """One tensor with `data`. Raises `InvalidRequest`. `has_bools`: the text may hold `true` or `false`."""
    shape = decode_shape(item.get("shape"), f"{path}.shape")
    datatype = item.get("datatype")
    if datatype == BF16:
        raise InvalidRequest(f"{path}.datatype: {BF16} has no JSON form; send the tensor as binary data")
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


def _requested_outputs(
    value: Any, parameters: JsonObject
) -> tuple[tuple[str, ...] | None, tuple[OutputForm, ...] | None]:
    """Names and forms of the outputs, as `InferenceRequest` has them."""
    by_default = _flag(parameters, BINARY_OUTPUT, "parameters", default=False)
    if value is not None and not isinstance(value, list):
        raise InvalidRequest(f"outputs: expected a list, got {_kind(value)}")
    if not value:
        return None, (OutputForm(is_binary=True),) if by_default else None
    forms: dict[str, OutputForm] = {}
    for index, item in enumerate(value):
        path = f"outputs[{index}]"
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(f"{path}.name: expected an object with the name of an output")
        if name in forms:
            raise InvalidRequest(f"{path}.name: output {name!r} occurs twice")
        path = f"{path}.parameters"
        parameters = _parameters(item, path)
        is_binary = _flag(parameters, "binary_data", path, default=by_default)
        forms[name] = OutputForm(is_binary, class_count(parameters, path))
    is_plain = all(form == JSON_FORM for form in forms.values())
    return tuple(forms), None if is_plain else tuple(forms.values())


def _flag(parameters: JsonObject, name: str, path: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{path}.{name}: expected true or false, got {shown(value)}")
    return value


def _parameters(item: JsonObject, path: str) -> JsonObject:
    value = item.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}: expected an object, got {_kind(value)}")
    check_values(value, path)
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
