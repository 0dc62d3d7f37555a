"""The common request and the common response, without a Python object for each number.

`FastDecoder` is made once for each signature. It takes the bodies that nearly all clients send, reads `data` straight
into a buffer with simdjson, and proves on the way that the request fits the signature. Whatever surprises it, it leaves
to `json_codec.decode_request`, which either takes the body after all or says precisely what is wrong with it: this file
never refuses anything. `encode` writes the outputs of a whole run at once and cuts the text into rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import (
    Array,
    BatchOutputs,
    InferenceRequest,
    InferenceResponse,
    ModelKey,
    Signature,
    TensorSpec,
    string_array,
)

BUFFER_TYPES = {"f": "d", "i": "i", "u": "u"}
"""numpy kind -> simdjson's `of_type`: double, int64, uint64."""
BUFFER_DTYPES = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}

REUSED_PARSER_BYTES = 2**20
"""A parser keeps the memory that its largest document took; larger bodies get a parser of their own."""
MAX_SHAPES = 1024
"""Distinct shapes remembered for each input."""


class Surprise(Exception):
    """Not the common body."""


class KnownShape(NamedTuple):
    """A shape that fits, and what follows from it."""

    shape: tuple[int, ...]
    size: int
    rows: int
    is_ambiguous: bool
    """Flat data has as many elements as nested data has rows."""


class TensorReader:
    """Reads one input of one signature."""

    def __init__(self, spec: TensorSpec) -> None:
        self.datatype = spec.datatype
        self.shapes: dict[bytes, KnownShape] = {}
        """By their minified JSON text."""
        self._spec = spec
        self._dtype = NUMPY_DTYPES[spec.datatype]
        self._of_type = BUFFER_TYPES.get(self._dtype.kind)
        self._buffer_dtype = BUFFER_DTYPES.get(self._of_type or "")
        greatest = float(np.finfo(self._dtype).max) if self._dtype.kind == "f" else 0.0
        # A product that is too large is infinite; a power would raise.
        self._greatest_square = greatest * greatest

    def learn(self, text: bytes) -> KnownShape:
        """The shape that `text` spells. Raises `Surprise` if it does not fit."""
        shape = self._check(orjson.loads(text))
        size = math.prod(shape)
        rows = shape[0] if shape else 1
        known = KnownShape(shape, size, rows, len(shape) > 1 and rows == size)
        if len(self.shapes) < MAX_SHAPES:
            self.shapes[text] = known
        return known

    def read(self, data: Any, known: KnownShape) -> tuple[Array, int]:
        """The tensor, and how many brackets it opened in the text. Raises `Surprise`, `TypeError` or `ValueError`."""
        shape, size, _, is_ambiguous = known
        brackets = 1
        if len(data) != size or (is_ambiguous and isinstance(data[0], simdjson.Array)):
            brackets = _nesting(data, shape)
        of_type = self._of_type
        if of_type is None:
            return self._read_list(data.as_list(), shape, size, brackets), brackets
        wide = np.frombuffer(data.as_buffer(of_type=of_type), self._buffer_dtype)
        array = wide.astype(self._dtype)
        # A number too large for the datatype has become infinite, or another number. Where the squares add up to less
        # than the greatest square there is none.
        if of_type == "d":
            if not wide.dot(wide) < self._greatest_square and not np.isfinite(array).all():
                raise Surprise
        elif b"\0" in (array == wide).tobytes():
            raise Surprise
        # Raises `ValueError` for another number of elements.
        array.shape = shape
        return array, brackets

    def _read_list(self, values: list[Any], shape: tuple[int, ...], size: int, brackets: int) -> Array:
        kind = str if self.datatype == BYTES else bool
        if brackets != 1 or len(values) != size or set(map(type, values)) != {kind}:
            raise Surprise
        return string_array(values, shape) if kind is str else np.array(values, np.bool_).reshape(shape)

    def _check(self, shape: list[Any]) -> tuple[int, ...]:
        expected = self._spec.shape
        if len(shape) != len(expected) or any(type(extent) is not int or extent < 1 for extent in shape):
            raise Surprise
        if any(want not in (-1, extent) for want, extent in zip(expected, shape, strict=True)):
            raise Surprise
        return tuple(shape)


class FastDecoder:
    """Decodes the common body for one signature."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._output_names = {spec.name for spec in signature.outputs}
        self._readers = {spec.name: TensorReader(spec) for spec in signature.inputs}
        self._parser = simdjson.Parser()

    def decode(
        self, body: bytes, model: str, version: str | None, headers: Mapping[str, str]
    ) -> InferenceRequest | None:
        """The request, known to fit the signature but for the number of rows; None if it is not the common kind."""
        parser = self._parser if len(body) <= REUSED_PARSER_BYTES else simdjson.Parser()
        readers = self._readers
        inputs: dict[str, Array] = {}
        opened, rows = 1, 0
        request_id, outputs = None, None
        try:
            document: Any = parser.parse(body)
            tensors = document["inputs"]
            if len(tensors) != len(readers):
                raise Surprise
            for item in tensors:
                name = item["name"]
                reader = readers[name]
                if item["datatype"] != reader.datatype or len(item) != 4:
                    raise Surprise
                text = item["shape"].mini
                known = reader.shapes.get(text) or reader.learn(text)
                if rows and known.rows != rows:
                    raise Surprise
                rows = known.rows
                inputs[name], brackets = reader.read(item["data"], known)
                opened += 1 + brackets
            if len(document) != 1:
                request_id, outputs = _members(document)
                if outputs is not None:
                    opened += 1
                    if not self._output_names.issuperset(outputs):
                        raise Surprise
        except (Surprise, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeWarning):
            return None
        except RuntimeError:
            # Somebody still holds a part of an earlier document, so this parser must not be used again.
            self._parser = simdjson.Parser()
            return None
        # simdjson skips a byte order mark, which JSON does not allow (RFC 8259, section 8.1).
        if body[:1] == b"\xef":
            return None
        # Every bracket of the text is accounted for, so no list hides in another, and no name or id holds one.
        if len(inputs) != len(readers) or body.count(b"[") != opened:
            return None
        return InferenceRequest(model, version, inputs, request_id, outputs, {}, headers, self._signature, rows)


def _members(document: Any) -> tuple[str | None, tuple[str, ...] | None]:
    """`id` and `outputs`, where nothing else is asked for."""
    request_id, outputs = None, None
    if len(set(document)) != len(document):
        raise Surprise
    for key in document:
        if key == "id":
            request_id = document["id"]
            if not isinstance(request_id, str):
                raise Surprise
        elif key == "outputs":
            outputs = tuple(_output_name(item) for item in document["outputs"])
            if not outputs or len(set(outputs)) != len(outputs):
                raise Surprise
        elif key != "inputs":
            raise Surprise
    return request_id, outputs


def _output_name(item: Any) -> str:
    if len(item) != 1:
        raise Surprise
    return str(item["name"])


def _nesting(data: Any, shape: tuple[int, ...]) -> int:
    """Brackets of data that is nested exactly as `shape` says."""
    rows, brackets = [data], 0
    for axis, extent in enumerate(shape):
        brackets += len(rows)
        if any(len(row) != extent for row in rows):
            raise Surprise
        if axis < len(shape) - 1:
            rows = [inner for row in rows for inner in row]
    return brackets


class RowTexts:
    """The outputs of one run as JSON text, written once for all callers and cut into rows."""

    __slots__ = ("_heads", "_rows", "_single")

    def __init__(self, heads: list[tuple[bytes, bytes]], rows: list[list[bytes]]) -> None:
        self._heads = heads
        self._rows = rows
        self._single: list[bytes] | None = None

    def row(self, index: int) -> bytes:
        """All outputs of one row, as they stand in the answer to a request with one row."""
        if self._single is None:
            # Each output's text is fixed but for the values: `...,"data":[` values `]},{...,"data":[` values `]}`.
            fixed = [before + b"1" + after for before, after in self._heads]
            pieces = [fixed[0], *(b"]}," + text for text in fixed[1:]), b"]}"]
            self._single = [_interleave(pieces, values) for values in zip(*self._rows, strict=True)]
        return self._single[index]

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


def encode(response: InferenceResponse) -> bytes | None:
    """The body of a response that is some rows of a run; None if each value has to be looked at."""
    run = response.run
    if run is None:
        return None
    if run.texts is None:
        run.texts = _row_texts(run) or False
    texts: RowTexts = run.texts
    if not texts:
        return None
    if response.rows == 1 and response.indices is None:
        outputs = texts.row(response.start)
    else:
        indices = response.indices
        every = tuple(range(len(run.specs))) if indices is None else indices
        outputs = texts.outputs(every, response.start, response.rows)
    if response.id is None:
        return _opening(response.key) + outputs + b"]}"
    return _opening(response.key)[:-12] + b',"id":' + orjson.dumps(response.id) + b',"outputs":[' + outputs + b"]}"


@lru_cache(maxsize=1024)
def _opening(key: ModelKey) -> bytes:
    name, version = orjson.dumps(key.name), key.version.encode()
    return b'{"model_name":' + name + b',"model_version":"' + version + b'","outputs":['


def _row_texts(run: BatchOutputs) -> RowTexts | None:
    """None if JSON cannot hold a value, or cannot be cut safely: each response is then encoded by itself."""
    heads, rows = [], []
    for spec, array in zip(run.specs, run.arrays, strict=True):
        if spec.datatype == BYTES or array.size == 0 or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            return None
        flat = np.ascontiguousarray(array).reshape(len(array), -1)
        rows.append(orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],["))
        heads.append(_head(spec.name, spec.datatype, array.shape[1:]))
    return RowTexts(heads, rows)


@lru_cache(maxsize=1024)
def _head(name: str, datatype: str, trailing: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What stands before and after the number of rows in an output."""
    before = b'{"name":' + orjson.dumps(name) + b',"shape":['
    shape = b"".join(b",%d" % extent for extent in trailing)
    return before, shape + b'],"datatype":"' + datatype.encode() + b'","data":['
