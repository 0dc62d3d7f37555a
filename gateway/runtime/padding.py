"""Sequences of different lengths in one run: each padded at its end to the next of a few lengths (`model.toml`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gateway.errors import StartupError
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.signature import refuse_uneven
from gateway.runtime.manifest import PaddingConfig
from gateway.runtime.work import Work
from gateway.types import Array, Signature, TensorSpec, cut


class Sequence(NamedTuple):
    """A tensor as long as the sequence."""

    name: str
    row_axis: int
    axis: int
    """Of the sequence."""
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    value: bool | int | float | str = 0
    """What it is padded with."""

    def blank(self, rows: int, length: int, like: tuple[int, ...]) -> Array:
        """Nothing but padding; `like` gives the extents of the other axes."""
        shape = list(like)
        shape[self.row_axis], shape[self.axis] = rows, length
        return np.full(shape, self.value, self.dtype)

    def place(self, into: Array, start: int, rows: int, length: int) -> Array:
        """A view of where the rows of a caller lie."""
        return cut(cut(into, self.row_axis, start, start + rows), self.axis, 0, length)


class Padding:
    """What is padded, to which lengths, and cut back."""

    def __init__(
        self, lengths: tuple[int, ...], inputs: list[Sequence], outputs: Mapping[str, int], mask: Sequence | None
    ) -> None:
        """Without `lengths` nothing is padded, and the mask is all ones. `outputs` are cut back on the axis given."""
        self.lengths = lengths
        self._inputs = inputs
        self._outputs = outputs
        self._mask = mask
        self.places = [(sequence.name, sequence.axis) for sequence in inputs]
        """Input and axis of each sequence that clients send."""

    def masking_only(self) -> Padding:
        """Nothing is padded or cut back."""
        return Padding((), self._inputs, {}, self._mask)

    def length_of(self, work: Work) -> int:
        """Of a caller's sequences. Raises `InvalidRequest` if they differ."""
        extents: list[int] = [work.inputs[name].shape[axis] for name, axis in self.places]
        if extents.count(extents[0]) != len(extents):
            refuse_uneven("length", self.places, extents)
        return extents[0]

    def padded(self, length: int) -> int:
        """The length in the run: that of the caller where it is 0, or longer than any that is padded to."""
        index = bisect_left(self.lengths, length)
        return self.lengths[index] if length and index < len(self.lengths) else length

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input of that shape, in the run."""
        return tuple(
            self.padded(extent) if (name, axis) in self.places else extent for axis, extent in enumerate(shape)
        )

    def gather(self, works: list[Work]) -> dict[str, Array]:
        """The padded inputs of a run, and the mask."""
        first = self._inputs[0]
        # Not `Work.rows`: a model that runs each request alone counts it as one row, whatever it holds.
        rows = [work.inputs[first.name].shape[first.row_axis] for work in works]
        lengths = [self.length_of(work) for work in works]
        length, total = self.padded(lengths[0]), sum(rows)
        tensors = {}
        for sequence in (*self._inputs, *filter(None, (self._mask,))):
            sent = [work.inputs.get(sequence.name) for work in works]
            tensor = sequence.blank(total, length, sequence.shape if sent[0] is None else sent[0].shape)
            start = 0
            for values, count, own in zip(sent, rows, lengths, strict=True):
                sequence.place(tensor, start, count, own)[...] = 1 if values is None else values
                start += count
            tensors[sequence.name] = tensor
        return tensors

    def cut_back(self, name: str, array: Array, work: Work) -> Array:
        """The rows of a caller in an output, as long as the caller's sequence if the output is as long as that."""
        axis = self._outputs.get(name)
        return array if axis is None else cut(array, axis, 0, self.length_of(work))


def with_padding(config: PaddingConfig, signature: Signature) -> tuple[Padding, Signature]:
    """The padding of a batchable signature, and the signature that clients see: without the mask.

    Raises `StartupError` naming what the model does not have.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    sequences = []
    for name, padded in config.inputs.items():
        where = f"padding.inputs.{name}"
        spec = _known(inputs, name, where, "input")
        row_axis = _sequence_axis(spec, padded.axis, where)
        dtype = _checked_value(spec, padded.value, where)
        sequences.append(Sequence(name, row_axis, padded.axis, spec.shape, dtype, padded.value))
    for name, axis in config.outputs.items():
        _sequence_axis(_known(outputs, name, f"padding.outputs.{name}", "output"), axis, f"padding.outputs.{name}")
    mask = None if config.mask is None else _mask(_known(inputs, config.mask, "padding.mask", "input"))
    seen = tuple(spec for spec in signature.inputs if spec.name != config.mask)
    return Padding(config.lengths, sequences, config.outputs, mask), Signature(seen, signature.outputs)


def _known(specs: Mapping[str, TensorSpec], name: str, where: str, what: str) -> TensorSpec:
    if name not in specs:
        raise StartupError(f"{where}: no {what} {name!r}; the model's {what}s: {', '.join(specs)}")
    return specs[name]


def _sequence_axis(spec: TensorSpec, axis: int, where: str) -> int:
    """The axis of the rows, once it is known that the sequence may lie on `axis`."""
    if spec.axis is None:
        raise StartupError(f"{where}: {spec.name!r} has no rows, so there are no sequences in it")
    if spec.shape[axis : axis + 1] != (-1,) or axis == spec.axis:
        raise StartupError(
            f"{where}: axis {axis} of shape {list(spec.shape)}, whose rows lie on axis {spec.axis}, is no sequence"
        )
    return spec.axis


def _checked_value(spec: TensorSpec, value: bool | int | float | str, where: str) -> np.dtype[np.generic]:
    """The datatype, once the value is known to be one of it."""
    dtype = NUMPY_DTYPES[spec.datatype]
    try:
        with np.errstate(over="ignore"):
            held = np.array(value, dtype).item()
    except (ValueError, OverflowError, TypeError):
        held = None
    is_text = isinstance(value, str)
    fits = is_text if spec.datatype == BYTES else not is_text and (dtype.kind == "f" or held == value)
    if held is None or not fits:
        raise StartupError(f"{where}: value {value!r} is no {spec.datatype}")
    return dtype


def _mask(spec: TensorSpec) -> Sequence:
    others = [axis for axis, extent in enumerate(spec.shape) if extent == -1 and axis != spec.axis]
    if spec.axis is None or len(others) != 1 or spec.datatype == BYTES:
        raise StartupError(
            f"padding.mask: {spec.name!r} is {spec.datatype} {list(spec.shape)}; expected numbers with two variable "
            "axes, of the rows and of the sequence"
        )
    return Sequence(spec.name, spec.axis, others[0], spec.shape, NUMPY_DTYPES[spec.datatype])
