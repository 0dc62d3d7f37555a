"""The common request, without a Python object for each number.

`FastDecoder` is made once for each signature. It takes the bodies that nearly all clients send, reads `data` straight
into a buffer with simdjson, and proves on the way that the request fits the signature. Whatever surprises it, it leaves
to `json_codec.decode_request`, which either takes the body after all or says precisely what is wrong with it: this file
never refuses anything.

A client sends the same body again and again but for the numbers. What stands around them is learned from the first such
body (`Template`) and looked up for the next; short lists of numbers then stay text until the batch is formed, which
reads those of all its callers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson
import simdjson

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.fast_binary import BinaryDecoder
from gateway.protocol.json_codec import decode_request
from gateway.types import Array, InferenceRequest, NumberTemplate, Signature, TensorSpec, string_array

BUFFER_TYPES = {"f": "d", "i": "i", "u": "u"}
"""numpy kind -> simdjson's `of_type`: double, int64, uint64."""
BUFFER_DTYPES = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}

REUSED_PARSER_BYTES = 4 * 2**20
"""A parser keeps the memory that its largest document took; larger bodies get a parser of their own."""
DOT_SIZE = 4096
"""Of more numbers OpenBLAS would share out the product to threads, which then spin for the next one."""
MAX_SHAPES = 1024
"""Distinct shapes remembered for each input."""
MAX_TEMPLATES = 256
"""Templates remembered for each signature; when they are more, all are forgotten and learned again."""
MAX_TEMPLATE_BYTES = 1024
"""A longer text around the numbers is not remembered."""
JOINED_BYTES = 4096
"""Longer lists of numbers are read as they arrive: they gain nothing from company, and counting their commas costs."""

Decoded: TypeAlias = tuple[InferenceRequest, NumberTemplate | None, bytes]
"""A request; where its only input is still text, the template that reads it, and that text."""


class Surprise(Exception):
    """Not the common body."""


class KnownShape(NamedTuple):
    """A shape that fits, and what follows from it."""

    shape: tuple[int, ...]
    size: int
    rows: int
    is_ambiguous: bool
    """Flat data has as many elements as nested data has rows."""


class Parser:
    """simdjson's, whose memory serves one document after the other: getting new memory takes a tenth of the time."""

    def __init__(self) -> None:
        self._reused = simdjson.Parser()

    def parse(self, text: bytes | memoryview) -> Any:
        """The document, to be forgotten before the next. Raises `ValueError` or `RuntimeError` for what is none."""
        parser = self._reused if len(text) <= REUSED_PARSER_BYTES else simdjson.Parser()
        return parser.parse(text)

    def renew(self) -> None:
        """Somebody still holds a part of an earlier document, so that parser must not be used again."""
        self._reused = simdjson.Parser()


class TensorReader:
    """Reads one input of one signature."""

    def __init__(self, spec: TensorSpec, parser: Parser) -> None:
        self.name = spec.name
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
        self._parser = parser

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers."""
        return self._of_type is not None

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
        array = self._numbers(data)
        # Raises `ValueError` for another number of elements.
        array.shape = shape
        return array, brackets

    def read_text(self, text: bytes | memoryview, size: int) -> Array | None:
        """`size` numbers from the text of one flat JSON list; None if it is anything else."""
        try:
            array = self._numbers(self._parser.parse(text))
        except (Surprise, ValueError, TypeError, AttributeError, RuntimeWarning):
            return None
        except RuntimeError:
            self._parser.renew()
            return None
        return array if array.size == size else None

    def _numbers(self, data: Any) -> Array:
        """Every number in a list, flat. Raises `Surprise`, `TypeError` or `ValueError`."""
        wide = np.frombuffer(data.as_buffer(of_type=self._of_type), self._buffer_dtype)
        array = wide.astype(self._dtype)
        # A number too large for the datatype has become infinite, or another number. Where the squares add up to less
        # than the greatest square there is none; that is quick to see of a few numbers.
        if self._of_type == "d":
            is_small = wide.size <= DOT_SIZE and wide.dot(wide) < self._greatest_square
            if not is_small and not np.isfinite(array).all():
                raise Surprise
        elif b"\0" in (array == wide).tobytes():
            raise Surprise
        return array

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


class Template:
    """What stands around the numbers of a body that was found to fit: with other numbers it fits as well."""

    __slots__ = ("_prefix", "_reader", "_size", "_suffix", "commas", "name", "request", "shape")

    def __init__(self, reader: TensorReader, around: tuple[bytes, bytes], learned_from: InferenceRequest) -> None:
        self._reader = reader
        self._prefix, self._suffix = around
        self.name = reader.name
        self.shape: tuple[int, ...] = learned_from.inputs[reader.name].shape
        self._size = math.prod(self.shape)
        self.commas = self._size - 1
        self.request = replace(learned_from, version=None, inputs={}, headers={})
        """What all its requests have in common that name no version: one object serves for all of them."""

    def read(self, numbers: memoryview) -> Array | None:
        """The tensor in a JSON list without inner lists; None if it holds anything but `size` numbers that fit."""
        array = self._reader.read_text(numbers, self._size)
        return None if array is None else array.reshape(self.shape)

    def read_all(self, numbers: Sequence[bytes], rows: int) -> Array | None:
        """The rows of several requests, each with the shape but for axis 0, `rows` in all.

        Every text is the inside of a list and has the commas that its own template expects. None if one holds anything
        but numbers that fit. No text holds `]`, so if the whole is a list it is a flat one, and the commas that part
        one text from the next are where they belong.
        """
        size = rows * (self._size // self.request.rows)
        array = self._reader.read_text(b"[%b]" % b",".join(numbers), size)
        return None if array is None else array.reshape(rows, *self.shape[1:])

    def decode(self, numbers: bytes) -> dict[str, Array]:
        """The inputs of one request. Raises `InvalidRequest` naming what is wrong."""
        return decode_request(self._prefix + numbers + self._suffix, "", None, {}).inputs


class FastDecoder:
    """Decodes the common body for one signature."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self.binary = BinaryDecoder(signature)
        """For bodies of which not all is JSON."""
        self._output_names = {spec.name for spec in signature.outputs}
        self._parser = Parser()
        self._readers = {spec.name: TensorReader(spec, self._parser) for spec in signature.inputs}
        self._templates: dict[tuple[bytes, bytes], Template] = {}
        # With several inputs a body has several lists of numbers, and with others than numbers none.
        self._only = next(iter(self._readers.values())) if len(signature.inputs) == 1 else None
        self._has_templates = self._only is not None and self._only.is_numeric

    def decode(self, body: bytes, model: str, version: str | None, headers: Mapping[str, str]) -> Decoded | None:
        """The request, known to fit the signature but for the number of rows; None if it is not the common kind."""
        if not self._has_templates:
            return _whole(self._read(body, model, version, headers))
        # The first innermost list of `data`, or of whatever looks like it: what is found is compared with what fitted.
        end = body.find(b"]", body.find(b'"data":'))
        start = body.rfind(b"[", 0, end) + 1
        if start + len(body) - end > MAX_TEMPLATE_BYTES:
            return _whole(self._read(body, model, version, headers))
        around = body[:start], body[end:]
        template = self._templates.get(around)
        if template is None:
            request = self._read(body, model, version, headers)
            if request is not None and request.id is None:
                self._learn(around, request)
            return _whole(request)
        request = template.request
        if version is not None:
            request = replace(request, version=version)
        if end - start > JOINED_BYTES:
            array = template.read(memoryview(body)[start - 1 : end + 1])
            return None if array is None else (replace(request, inputs={template.name: array}), None, b"")
        return (request, template, body[start:end]) if body.count(b",", start, end) == template.commas else None

    def _learn(self, around: tuple[bytes, bytes], request: InferenceRequest) -> None:
        """Remember what surrounds the numbers, if with none between it is the same request with no numbers."""
        try:
            numbers = orjson.loads(b"".join(around))["inputs"][0]["data"]
        except (orjson.JSONDecodeError, KeyError):
            return
        while numbers:
            if len(numbers) > 1:
                return
            numbers = numbers[0]
        if numbers == [] and self._only is not None:
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            self._templates[around] = Template(self._only, around, request)

    def _read(
        self, body: bytes, model: str, version: str | None, headers: Mapping[str, str]
    ) -> InferenceRequest | None:
        readers = self._readers
        inputs: dict[str, Array] = {}
        opened, rows = 1, 0
        request_id, outputs = None, None
        try:
            document = self._parser.parse(body)
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
            self._parser.renew()
            return None
        # simdjson skips a byte order mark, which JSON does not allow (RFC 8259, section 8.1).
        if body[:1] == b"\xef":
            return None
        # Every bracket of the text is accounted for, so no list hides in another, and no name or id holds one.
        if len(inputs) != len(readers) or body.count(b"[") != opened:
            return None
        return InferenceRequest(model, version, inputs, request_id, outputs, {}, headers, self._signature, rows)


def _whole(request: InferenceRequest | None) -> Decoded | None:
    return None if request is None else (request, None, b"")


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
