"""On which axis of each tensor the rows lie, as far as a graph tells.

Exporters name variable dimensions: where two tensors have the same name, they have the same extent. The name of the
batch thus marks its axis in every tensor, first or not, and an input without it holds for all rows of a run. Not all
name them, and no name is bound to mean what it says. So there may be several readings, and `proof.py` tries them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from gateway.errors import StartupError
from gateway.types import Signature, TensorSpec

Dimension: TypeAlias = int | str | None
"""Fixed, variable under a name, or variable without one."""

BATCH_NAME = re.compile(r"(?i)n|bs?|.*batch.*")
"""What exporters and people call the batch."""
MAX_CANDIDATES = 4
"""Readings of one graph that are tried; each costs runs at load."""


class GraphTensor(NamedTuple):
    """An input or output as the file declares it."""

    name: str
    datatype: str
    dimensions: tuple[Dimension, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the protocol has it: -1 is variable."""
        return tuple(extent if isinstance(extent, int) else -1 for extent in self.dimensions)

    def spec(self, axis: int | None) -> TensorSpec:
        """With its rows on an axis."""
        return TensorSpec(self.name, self.datatype, self.shape, axis)

    def axis_of(self, name: str) -> int | None:
        """The first axis under a name; None if there is none."""
        return self.dimensions.index(name) if name in self.dimensions else None


class Graph(NamedTuple):
    """What a model file declares, in its order."""

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]

    @property
    def names(self) -> list[str]:
        """Of the variable dimensions of the inputs, in the order in which they first occur."""
        dimensions = (extent for tensor in self.inputs for extent in tensor.dimensions)
        return list(dict.fromkeys(extent for extent in dimensions if isinstance(extent, str)))


def candidates(graph: Graph) -> list[Signature]:
    """What the graph may mean, the likeliest first; all are batchable. Empty if no reading has rows."""
    names = sorted(graph.names, key=lambda name: (BATCH_NAME.fullmatch(name) is None, _depth(graph, name)))
    readings = [
        *(_by_name(graph, name, guess_outputs=False) for name in names),
        _by_position(graph),
        *(_by_name(graph, name, guess_outputs=True) for name in names),
    ]
    return list(_distinct(readings))[:MAX_CANDIDATES]


def stated(graph: Graph, axes: Mapping[str, int]) -> Signature:
    """What `axes` says. Raises `StartupError` if the graph says otherwise."""
    tensors = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
    for name, axis in axes.items():
        if name not in tensors:
            raise StartupError(f"batching.axes: no tensor {name!r}; the model has {', '.join(tensors)}")
        shape = tensors[name].shape
        if shape[axis : axis + 1] != (-1,):
            raise StartupError(f"batching.axes.{name}: axis {axis} of shape {list(shape)} is not variable (-1)")
    for tensor in graph.outputs:
        if tensor.name not in axes:
            raise StartupError(f"batching.axes: output {tensor.name!r} is missing; an output has rows or is none")
    if not any(tensor.name in axes for tensor in graph.inputs):
        raise StartupError(f"batching.axes: no input has rows; inputs: {', '.join(t.name for t in graph.inputs)}")
    return _signature(graph, [axes.get(tensor.name) for tensor in (*graph.inputs, *graph.outputs)])


def without_rows(graph: Graph) -> Signature:
    """Each request runs alone."""
    return _signature(graph, [None] * len(graph.inputs + graph.outputs))


def _by_name(graph: Graph, name: str, *, guess_outputs: bool) -> Signature | None:
    """The rows lie where the name stands; in an output where it does not, on the first axis that no input names."""
    tensors = (*graph.inputs, *graph.outputs)
    if any(tensor.dimensions.count(name) > 1 for tensor in tensors):
        return None
    known = set(graph.names)
    outputs = [
        _free_axis(tensor, known) if guess_outputs and name not in tensor.dimensions else tensor.axis_of(name)
        for tensor in graph.outputs
    ]
    return _signature(graph, [*(tensor.axis_of(name) for tensor in graph.inputs), *outputs])


def _by_position(graph: Graph) -> Signature | None:
    """Where nothing else is known, rows come first; an input without a variable extent holds for all of them."""
    inputs = [0 if -1 in tensor.shape else None for tensor in graph.inputs]
    return _signature(graph, [*inputs, *(0 for _ in graph.outputs)])


def _free_axis(tensor: GraphTensor, known: set[str]) -> int | None:
    for axis, extent in enumerate(tensor.dimensions):
        if not isinstance(extent, int) and extent not in known:
            return axis
    return None


def _depth(graph: Graph, name: str) -> int:
    """How far behind the first axes a name stands."""
    return sum(tensor.axis_of(name) or 0 for tensor in (*graph.inputs, *graph.outputs))


def _signature(graph: Graph, axes: Iterable[int | None]) -> Signature:
    """`axes` are those of the inputs, then those of the outputs."""
    specs = [tensor.spec(axis) for tensor, axis in zip((*graph.inputs, *graph.outputs), axes, strict=True)]
    return Signature(tuple(specs[: len(graph.inputs)]), tuple(specs[len(graph.inputs) :]))


def _distinct(readings: Iterable[Signature | None]) -> Iterator[Signature]:
    seen: list[Signature] = []
    for reading in readings:
        if reading is not None and reading.is_batchable and reading not in seen:
            seen.append(reading)
            yield reading
