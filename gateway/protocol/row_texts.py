"""The common response: the outputs of a whole run as JSON text, written once and cut into rows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import orjson

from gateway.protocol.datatypes import BYTES
from gateway.types import Array, BatchOutputs, InferenceResponse, ModelKey


class RowTexts:
    """The outputs of one run as JSON text, written once for all callers and cut into rows."""

    __slots__ = ("_heads", "_rows")

    def __init__(self, heads: list[tuple[bytes, bytes]], rows: list[list[bytes]]) -> None:
        self._heads = heads
        self._rows = rows

    def bodies(self, opening: bytes) -> list[bytes]:
        """For each row, the whole answer to a request with that row that asked for all outputs."""
        # Each output's text is fixed but for the values: `...,"data":[` values `]},{...,"data":[` values `]}]}`.
        fixed = [before + b"1" + after for before, after in self._heads]
        pieces = [opening + fixed[0], *(b"]}," + text for text in fixed[1:]), b"]}]}"]
        if len(fixed) == 1:
            before, after = pieces
            return [before + values + after for values in self._rows[0]]
        return [_interleave(pieces, values) for values in zip(*self._rows, strict=True)]

    def outputs(self, indices: tuple[int, ...], start: int, rows: int) -> bytes:
        """Some outputs of `rows` rows from `start` on."""
        count = b"%d" % rows
        parts = []
        for index in indices:
            before, after = self._heads[index]
            text = b",".join(self._rows[index][start : start + rows])
            parts.append(before + count + after + text + b"]}")
        return b",".join(parts)


def _interleave(pieces: list[bytes], values: tuple[bytes, ...]) -> bytes:
    parts = [pieces[0]]
    for value, piece in zip(values, pieces[1:], strict=True):
        parts += (value, piece)
    return b"".join(parts)


def row_bodies(run: BatchOutputs, key: ModelKey) -> list[bytes] | None:
    """The answer to each request with one row that gave no id and asked for all outputs.

    None if each value has to be looked at.
    """
    if run.bodies is None:
        texts = _texts(run)
        run.bodies = texts.bodies(_opening(key)) if texts else False
    return run.bodies or None


def encode(response: InferenceResponse) -> bytes | None:
    """The body of a response that is some rows of a run; None if each value has to be looked at."""
    run = response.run
    texts = _texts(run) if run is not None else None
    if run is None or not texts:
        return None
    every = tuple(range(len(run.specs))) if response.indices is None else response.indices
    outputs = texts.outputs(every, response.start, response.rows)
    return opening(response.key, response.id) + outputs + b"]}"


def opening(key: ModelKey, request_id: str | None) -> bytes:
    """An answer up to its first output."""
    if request_id is None:
        return _opening(key)
    return _opening(key)[:-12] + b',"id":' + orjson.dumps(request_id) + b',"outputs":['


def _texts(run: BatchOutputs) -> RowTexts | None:
    if run.texts is None:
        run.texts = _row_texts(run) or False
    return run.texts or None


@lru_cache(maxsize=1024)
def _opening(key: ModelKey) -> bytes:
    name, version = orjson.dumps(key.name), key.version.encode()
    return b'{"model_name":' + name + b',"model_version":"' + version + b'","outputs":['


def _row_texts(run: BatchOutputs) -> RowTexts | None:
    """None if JSON cannot hold a value, or cannot be cut safely: each response is then encoded by itself."""
    heads, rows = [], []
    for spec, array in zip(run.specs, run.arrays, strict=True):
        if spec.datatype == BYTES or array.size == 0:
            return None
        text = orjson.dumps(_flat_rows(array), option=orjson.OPT_SERIALIZE_NUMPY)
        # orjson writes NaN and the infinities as null, which alone has an n.
        if array.dtype.kind == "f" and b"n" in text:
            return None
        rows.append(text[2:-2].split(b"],["))
        heads.append(_head(spec.name, spec.datatype, array.shape[1:]))
    return RowTexts(heads, rows)


def _flat_rows(array: Array) -> Array:
    """Shape [rows, values of each], as orjson takes it."""
    if array.ndim == 2 and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array).reshape(len(array), -1)


@lru_cache(maxsize=1024)
def _head(name: str, datatype: str, trailing: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What stands before and after the number of rows in an output."""
    before = b'{"name":' + orjson.dumps(name) + b',"shape":['
    shape = b"".join(b",%d" % extent for extent in trailing)
    return before, shape + b'],"datatype":"' + datatype.encode() + b'","data":['
