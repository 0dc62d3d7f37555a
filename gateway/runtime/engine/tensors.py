"""Tensors in shared memory: as on the wire (`protocol/raw_tensor.py`), one behind the other at multiples of 64 bytes.

Numbers lie in row-major order in this machine's byte order, so that the engine runs on them where they are; each BYTES
element is UTF-8 behind its length, a UINT32. Shapes and lengths travel in the message.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.raw_tensor import decode_raw, encode_raw
from gateway.runtime.engine.arena import aligned
from gateway.types import Array, TensorSpec

Places: TypeAlias = list[tuple[list[int], int]]
"""Shape and length in bytes of each tensor, in the order of the signature."""

GUESSED_TEXT_BYTES = 60
"""Of a BYTES element nobody has seen yet."""


class Packed(NamedTuple):
    """Tensors on their way into shared memory."""

    places: Places
    parts: list[bytes | memoryview]
    size: int
    """Of all of them with the gaps between them."""

    def write(self, memory: mmap.mmap, start: int) -> None:
        """Copy them to `start`, a multiple of `ALIGNMENT`."""
        for part in self.parts:
            memory[start : start + len(part)] = part
            start += aligned(len(part))


def pack(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> Packed:
    """Get ready to write tensors; numbers are not copied yet. Raises `ValueError` for a text that has no UTF-8."""
    parts = [encode_raw(spec.datatype, array) for spec, array in zip(specs, arrays, strict=True)]
    places = [(list(array.shape), len(part)) for array, part in zip(arrays, parts, strict=True)]
    return Packed(places, parts, sum([aligned(len(part)) for part in parts]))


def unpack(specs: Sequence[TensorSpec], places: Places, memory: mmap.mmap, start: int) -> list[Array]:
    """The tensors at `start`: numbers where they lie, texts as objects.

    Raises `InvalidRequest` or `ValueError` if they do not lie there.
    """
    view = memoryview(memory)
    arrays = []
    for spec, (shape, size) in zip(specs, places, strict=True):
        arrays.append(decode_raw(spec.datatype, shape, view[start : start + size], spec.name))
        start += aligned(size)
    return arrays


def row_bytes(specs: Sequence[TensorSpec]) -> int:
    """About how much one row of these takes; a variable dimension counts as 1."""
    return sum(aligned(math.prod(map(abs, spec.shape)) * _element_bytes(spec.datatype)) for spec in specs)


def _element_bytes(datatype: str) -> int:
    return GUESSED_TEXT_BYTES if datatype == BYTES else NUMPY_DTYPES[datatype].itemsize
