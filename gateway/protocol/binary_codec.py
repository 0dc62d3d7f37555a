"""The binary tensor data extension: a JSON text, then the bytes of tensors one after the other.

`Inference-Header-Content-Length` says where the JSON ends, in requests and in answers (Triton's
`extension_binary_data.md`). 0 says that there is none: the whole body is the one input that the model takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import orjson

from gateway.errors import InvalidRequest, shown
from gateway.protocol import json_codec
from gateway.protocol.classification import formed_outputs
from gateway.protocol.datatypes import BYTES, RAW_DTYPES
from gateway.protocol.raw_tensor import decode_raw, encode_raw, fill, text_of
from gateway.protocol.row_texts import opening
from gateway.types import (
    Array,
    InferenceRequest,
    InferenceResponse,
    OutputForm,
    Signature,
    TensorSpec,
    string_array,
)

BINARY_HEADER = "inference-header-content-length"
MAX_DIGITS = 18
"""Of a length. Python takes its time over longer numbers."""
RAW_FORMS = (OutputForm(is_binary=True),)
"""Of the outputs of a raw request."""


def json_length(announced: str, size: int) -> int:
    """Bytes of JSON in a body of `size` bytes. Raises `InvalidRequest` if the header cannot be true."""
    if not (announced.isascii() and announced.isdigit()):
        raise InvalidRequest(f"Inference-Header-Content-Length: expected a number of bytes, got {shown(announced)}")
    if len(announced) > MAX_DIGITS or int(announced) > size:
        raise InvalidRequest(
            f"Inference-Header-Content-Length: {shown(announced)} bytes of JSON, but the body has {size}"
        )
    return int(announced)


def decode_raw_request(
    body: bytes | memoryview, signature: Signature, model: str, version: str | None, headers: Mapping[str, str]
) -> InferenceRequest:
    """The request whose body is nothing but its only input. Raises `InvalidRequest` saying why it cannot be that."""
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise InvalidRequest(f"Inference-Header-Content-Length: 0 is for models with one input; this one takes {names}")
    (spec,) = signature.inputs
    array = _raw_string(body, spec) if spec.datatype == BYTES else _raw_numbers(body, spec)
    return InferenceRequest(model, version, {spec.name: array}, forms=RAW_FORMS, headers=headers)


def _raw_string(body: bytes | memoryview, spec: TensorSpec) -> Array:
    if any(extent not in (-1, 1) for extent in spec.shape):
        raise InvalidRequest(
            f"input {spec.name!r}: a raw body is one BYTES element, the model takes shape {list(spec.shape)}"
        )
    text = text_of(body, 0, f"input {spec.name!r}")
    return string_array([text], (1,) * len(spec.shape))


def _raw_numbers(body: bytes | memoryview, spec: TensorSpec) -> Array:
    variable = spec.shape.count(-1)
    path = f"input {spec.name!r}"
    if variable > 1:
        raise InvalidRequest(
            f"{path}: a raw body leaves one dimension to be found out, shape {list(spec.shape)} has {variable}"
        )
    step = RAW_DTYPES[spec.datatype].itemsize * math.prod(extent for extent in spec.shape if extent != -1)
    if variable and (step == 0 or len(body) % step):
        raise InvalidRequest(
            f"{path}: {len(body)} bytes are no whole number of rows of {step} bytes, as shape {list(spec.shape)} wants"
        )
    shape = [len(body) // step if extent == -1 else extent for extent in spec.shape]
    return fill(decode_raw(spec.datatype, shape, body, path), shape, path)


def encode_response(response: InferenceResponse) -> tuple[bytes, int | None]:
    """The body, and how many bytes of it are JSON; None if all are. Raises `InferenceFailed` for what JSON cannot hold.

    Each output is in the form that the request asked for.
    """
    if response.forms is None:
        return json_codec.encode_response(response), None
    texts: list[bytes] = []
    buffers: list[bytes | memoryview] = []
    for spec, values, form in formed_outputs(response):
        if form.is_binary:
            buffer = encode_raw(spec.datatype, values)
            texts.append(_described(spec.name, spec.datatype, values.shape, len(buffer)))
            buffers.append(buffer)
        else:
            document = json_codec.output_document(spec, values)
            texts.append(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))
    head = opening(response.key, response.id) + b",".join(texts) + b"]}"
    # As Triton does: where no bytes follow, nothing is said of where they begin.
    return (b"".join((head, *buffers)), len(head)) if any(map(len, buffers)) else (head, None)


@lru_cache(maxsize=4096)
def _described(name: str, datatype: str, shape: tuple[int, ...], size: int) -> bytes:
    """An output whose bytes follow the JSON."""
    parameters = {json_codec.BINARY_SIZE: size}
    return orjson.dumps({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
