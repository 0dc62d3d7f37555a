"""numpy arrays as the body of an inference request, and the body of an answer as numpy arrays.

Binary is the protocol's binary tensor data extension: the JSON, then the tensors' bytes one after the other, and a
header that says where the JSON ends. BYTES are object arrays of `str`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
import numpy as np
import orjson

from gateway.client.errors import InvalidResponse
from gateway.errors import InvalidRequest, shown
from gateway.protocol.binary_codec import BINARY_HEADER
from gateway.protocol.datatypes import BF16, BF16_DTYPE, BYTES, DATATYPES, NUMPY_DTYPES
from gateway.protocol.json_codec import decode_object, decode_shape, decode_tensor
from gateway.protocol.raw_tensor import decode_raw, encode_raw
from gateway.types import Array, JsonObject, string_array

PREDICTION_ID = "prediction-id"


@dataclass(frozen=True, slots=True)
class Result:
    """One answer."""

    outputs: dict[str, Array]
    """By name, with the dtype and shape that the model gave; BF16 as float32."""
    prediction_id: str
    """What a label is sent for; empty from a server that is no gateway of ours."""
    model_name: str
    model_version: str
    """The version that answered; empty from a server without versions."""
    id: str | None
    """The request's own id, if it had one."""


class Body(NamedTuple):
    """Content of a request and the headers that describe it."""

    content: bytes
    headers: dict[str, str]


def encode_request(
    inputs: Mapping[str, Array],
    outputs: Sequence[str] | None,
    id: str | None,  # noqa: A002 -- the protocol's name
    *,
    binary: bool,
) -> Body:
    """The body of an inference request. Raises `ValueError` naming an input that cannot be sent."""
    document: JsonObject = {} if id is None else {"id": id}
    buffers: list[bytes | memoryview] = []
    document["inputs"] = [_input(name, array, buffers if binary else None) for name, array in inputs.items()]
    if outputs is not None:
        document["outputs"] = [{"name": name} for name in outputs]
    if binary:
        document["parameters"] = {"binary_data_output": True}
    try:
        head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"not sent, the request is no JSON: {error}") from error
    if not binary:
        return Body(head, {"content-type": "application/json"})
    headers = {"content-type": "application/octet-stream", BINARY_HEADER: str(len(head))}
    return Body(b"".join((head, *buffers)), headers)


def decode_response(response: httpx.Response) -> Result:
    """The result in an answer with status 200. Raises `InvalidResponse` naming the field."""
    try:
        return _result(response)
    except InvalidRequest as error:
        message = f"{response.request.url}: the answer does not follow the protocol: {error.message}"
        raise InvalidResponse(message, status=response.status_code) from error


def _input(name: str, array: Array, buffers: list[bytes | memoryview] | None) -> JsonObject:
    """One input; its data goes to the end of `buffers`, if there are any."""
    datatype, values = _typed(name, array)
    tensor: JsonObject = {"name": name, "shape": values.shape, "datatype": datatype}
    if buffers is None:
        tensor["data"] = _json_data(name, datatype, values)
        return tensor
    buffer = encode_raw(datatype, values)
    buffers.append(buffer)
    tensor["parameters"] = {"binary_data_size": len(buffer)}
    return tensor


def _typed(name: str, array: Array) -> tuple[str, Array]:
    """The protocol's datatype, and the values as our own codecs take them."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"input {name!r}: expected a numpy array, got {type(array).__name__}")
    if array.dtype.kind in "OSTU":
        return BYTES, _texts(name, array)
    if array.dtype.name == "bfloat16":
        # numpy has no such type; the package ml_dtypes, which JAX and TensorFlow use, registers it.
        return BF16, np.ascontiguousarray(array).view(BF16_DTYPE).reshape(array.shape)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    datatype = DATATYPES.get(native.dtype)
    if datatype is None:
        known = ", ".join(map(str, NUMPY_DTYPES.values()))
        raise ValueError(f"input {name!r}: the protocol has no datatype for {array.dtype}; expected one of {known}")
    return datatype, native


def _texts(name: str, array: Array) -> Array:
    """Strings of any numpy kind as an object array of `str`; bytes are taken for UTF-8."""
    texts: list[str] = []
    for position, value in enumerate(array.ravel().tolist()):
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise ValueError(f"input {name!r}: element {position} is not UTF-8: {shown(value)}") from error
        if not isinstance(text, str):
            raise ValueError(f"input {name!r}: element {position}: expected a string, got {shown(value)}")
        texts.append(text)
    return string_array(texts, array.shape)


def _json_data(name: str, datatype: str, values: Array) -> Any:
    if datatype == BYTES:
        return values.ravel().tolist()
    if datatype == BF16:
        raise ValueError(f"input {name!r}: the protocol has no BF16 in JSON; send it binary")
    flat = np.ascontiguousarray(values).ravel()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        position = int(np.flatnonzero(~np.isfinite(flat))[0])
        raise ValueError(
            f"input {name!r}: element {position} is {flat[position]}, which JSON cannot hold; send it binary"
        )
    return flat


def _result(response: httpx.Response) -> Result:
    head, rest = _split(response)
    document = decode_object(head)
    return Result(
        outputs=_outputs(document.get("outputs"), rest, has_bools=b"true" in head or b"false" in head),
        prediction_id=response.headers.get(PREDICTION_ID, ""),
        model_name=_text(document, "model_name"),
        model_version=_text(document, "model_version", ""),
        id=None if document.get("id") is None else _text(document, "id"),
    )


def _split(response: httpx.Response) -> tuple[bytes, memoryview]:
    """The JSON, and the bytes of the tensors behind it."""
    content = response.content
    length = response.headers.get(BINARY_HEADER)
    if length is None:
        return content, memoryview(b"")
    if not (length.isascii() and length.isdigit() and int(length) <= len(content)):
        raise InvalidRequest(
            f"{BINARY_HEADER}: expected at most the {len(content)} bytes that came, got {shown(length)}"
        )
    return content[: int(length)], memoryview(content)[int(length) :]


def _outputs(items: Any, rest: memoryview, *, has_bools: bool) -> dict[str, Array]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidRequest(f"outputs: expected a list of tensors, got {shown(items)}")
    outputs: dict[str, Array] = {}
    for index, item in enumerate(items):
        path = f"outputs[{index}]"
        size = (item.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = decode_tensor(item, path, has_bools=has_bools)
        elif type(size) is int and 0 <= size <= len(rest):
            array = _raw(item, path, rest[:size])
            rest = rest[size:]
        else:
            raise InvalidRequest(f"{path}: {shown(size)} bytes of binary data, of which {len(rest)} came")
        outputs[_text(item, "name")] = array
    if rest:
        raise InvalidRequest(f"{len(rest)} bytes too many after the last tensor")
    return outputs


def _raw(item: JsonObject, path: str, buffer: memoryview) -> Array:
    array = decode_raw(_text(item, "datatype"), decode_shape(item.get("shape"), f"{path}.shape"), buffer, path)
    if array.dtype == BF16_DTYPE:
        # The high half of a float32. In place, for numpy makes a scalar of a sum without dimensions.
        bits = array["bf16"].astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    # The answer is the caller's own, as it is from JSON, and not a view of bytes that nobody may write.
    return np.require(array, requirements=["ALIGNED", "WRITEABLE"])


def _text(document: JsonObject, name: str, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: expected a string, got {shown(value)}")
    return value
