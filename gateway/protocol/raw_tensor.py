"""Tensors as raw bytes: the binary tensor data extension over HTTP, `raw_*_contents` over gRPC.

Little-endian, row-major, without padding. BOOL takes one byte, 0 or 1. Each BYTES element is preceded by its length, a
UINT32. (Open Inference Protocol, "Tensor Data"; Triton's `extension_binary_data.md`.) The arrays are in this machine's
byte order, which is little-endian wherever ONNX Runtime is published for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from gateway.errors import InvalidRequest, shown
from gateway.protocol.datatypes import BYTES, MAX_DIMENSIONS, RAW_DTYPES
from gateway.types import Array, string_array

_LENGTH = struct.Struct("<I")


def decode_raw(datatype: str, shape: Sequence[int], data: bytes | memoryview, path: str) -> Array:
    """The tensor in `data`, without a copy where the bytes lie aligned. BYTES become an object array of `str`.

    Nothing is allocated before the sizes are known to agree. Raises `InvalidRequest` naming `path`.
    """
    size = check_shape(shape, path)
    dtype = RAW_DTYPES.get(datatype)
    if dtype is None:
        raise unknown_datatype(datatype, path)
    if datatype == BYTES:
        return fill(_strings(size, data, path), shape, path)
    if len(data) != size * dtype.itemsize:
        takes = size * dtype.itemsize
        raise InvalidRequest(
            f"{path}: {len(data)} bytes do not fill shape {list(shape)} of {datatype}, which takes {takes}"
        )
    values = np.frombuffer(data, dtype)
    if dtype.kind == "b" and size and (codes := values.view(np.uint8)).max() > 1:
        position = int(np.flatnonzero(codes > 1)[0])
        raise InvalidRequest(f"{path}: element {position} is {codes[position]}; a BOOL is 0 or 1")
    return fill(values if values.flags.aligned else values.copy(), shape, path)


class RawParts:
    """The bytes behind a JSON text, given out in order."""

    def __init__(self, data: memoryview) -> None:
        self._rest = data

    def take(self, size: int, path: str) -> memoryview:
        """The next `size` bytes. Raises `InvalidRequest` if there are not as many."""
        if size > len(self._rest):
            raise InvalidRequest(f"{path}: {size} bytes, of which {len(self._rest)} came")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def close(self) -> None:
        """Raise `InvalidRequest` if bytes are left over."""
        if self._rest:
            raise InvalidRequest(f"body: {len(self._rest)} bytes too many after the last tensor")


def encode_raw(datatype: str, array: Array) -> bytes | memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    if datatype == BYTES:
        return b"".join(_framed(text.encode()) for text in array.ravel())
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def check_shape(shape: Sequence[int], path: str) -> int:
    """How many elements a shape has. Raises `InvalidRequest` for one that no tensor can have."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(f"{path}.shape: at most {MAX_DIMENSIONS} dimensions, got {len(shape)}")
    if any(extent < 0 for extent in shape):
        raise InvalidRequest(f"{path}.shape: expected whole numbers from 0 on, got {shown(list(shape))}")
    return math.prod(shape)


def fill(values: Array, shape: Sequence[int], path: str) -> Array:
    """`values` in a shape with as many elements. Raises `InvalidRequest` where an extent of 0 hides a huge one."""
    try:
        return values.reshape(shape)
    except ValueError as error:
        raise InvalidRequest(f"{path}.shape: {error}") from error


def text_of(element: bytes | memoryview, position: int, path: str) -> str:
    """A BYTES element as models take it. Raises `InvalidRequest` unless it is UTF-8."""
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{path}: element {position} is not UTF-8, which the model takes: {error.reason}"
        ) from error


def unknown_datatype(datatype: object, path: str) -> InvalidRequest:
    """The error for a datatype that the protocol does not have."""
    return InvalidRequest(f"{path}.datatype: expected one of {', '.join(RAW_DTYPES)}, got {shown(datatype)}")


def _strings(size: int, data: bytes | memoryview, path: str) -> Array:
    end = len(data)
    if size * _LENGTH.size > end:
        raise InvalidRequest(f"{path}: {end} bytes cannot hold {size} elements, each with 4 bytes of length before it")
    texts: list[str] = []
    offset = 0
    for position in range(size):
        start = offset + _LENGTH.size
        if start > end:
            raise InvalidRequest(f"{path}: the bytes end before the length of element {position}")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset = start + length
        if offset > end:
            raise InvalidRequest(f"{path}: element {position} claims {length} bytes, {end - start} are left")
        texts.append(text_of(data[start:offset], position, path))
    if offset != end:
        raise InvalidRequest(f"{path}: {end - offset} bytes are left over after {size} elements")
    return string_array(texts, (size,))


def _framed(element: bytes) -> bytes:
    return _LENGTH.pack(len(element)) + element
