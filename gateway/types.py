"""The few shapes that every layer shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
JsonObject: TypeAlias = dict[str, Any]
Inputs: TypeAlias = dict[str, Array]
"""Tensors by name."""


class ModelKey(NamedTuple):
    """One version of one model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class TensorSpec(NamedTuple):
    """Name, Open Inference Protocol datatype and shape of one input or output; -1 is a variable dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    axis: int | None = 0
    """On which its rows lie, if it is variable; None for a tensor without rows."""

    @property
    def has_rows(self) -> bool:
        """Whether it has as many rows as the run."""
        return self.axis is not None and self.shape[self.axis : self.axis + 1] == (-1,)


class Signature(NamedTuple):
    """What a model version takes and gives, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_batchable(self) -> bool:
        """Rows of several callers may share a run when every output has them, and some input.

        An input without an axis of rows holds for all of them, so that those who share a run must send the same.
        """
        rows = [spec for spec in self.inputs if spec.axis is not None]
        return bool(rows) and all(spec.has_rows for spec in (*rows, *self.outputs))

    @property
    def has_rows_first(self) -> bool:
        """Whether the rows of every tensor lie on axis 0, as those of nearly all models do."""
        return self.is_batchable and all(spec.axis == 0 for spec in self.inputs + self.outputs)


class NumberTemplate(Protocol):
    """Knows everything about the only input of a request but its numbers, which are still text."""

    name: str
    shape: tuple[int, ...]

    def read_all(self, numbers: Sequence[bytes], rows: int) -> Array | None:
        """The `rows` rows of several such requests; None if a text holds anything but numbers that fit."""

    def decode(self, numbers: bytes) -> dict[str, Array]:
        """The inputs of one request. Raises `InvalidRequest` naming what is wrong."""


class OutputForm(NamedTuple):
    """How one output is wanted."""

    is_binary: bool = False
    """As bytes behind the JSON, rather than in it."""
    classes: int = 0
    """How many of the greatest values of each row, with their index and label; 0 asks for the values as they are."""


@dataclass(slots=True)
class InferenceRequest:
    """A decoded prediction request. BYTES tensors are object arrays of `str`."""

    model: str
    version: str | None
    inputs: dict[str, Array]
    id: str | None = None
    outputs: tuple[str, ...] | None = None
    """Requested outputs in order; None asks for all."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Lower-case header names; routing reads them."""
    fits: Signature | None = None
    """A signature that the decoder found the inputs and outputs to fit."""
    rows: int = 0
    """Length of axis 0 of all inputs, where `fits` has its rows there."""
    forms: tuple[OutputForm, ...] | None = None
    """Of the requested outputs, in their order; one for all where none is named. None is JSON throughout."""


class BatchOutputs:
    """The outputs of one run, for all the requests that shared it."""

    __slots__ = ("arrays", "bodies", "on_encoded", "specs", "texts")

    def __init__(self, specs: tuple[TensorSpec, ...], arrays: list[Array]) -> None:
        self.specs = specs
        self.arrays = arrays
        self.on_encoded: Callable[[], None] | None = None
        """To be called when the first answer is written and before it is sent, if somebody wants to know."""
        self.texts: Any = None
        self.bodies: Any = None
        """Both are what an encoder prepared for the first of the requests and can use for the others."""


class InferenceResponse:
    """The answer to one request: its tensors, or the rows of a run that they are made of on demand."""

    __slots__ = ("_tensors", "forms", "id", "indices", "key", "labels", "prediction_id", "rows", "run", "start")

    def __init__(
        self,
        key: ModelKey,
        id: str | None,  # noqa: A002 -- the protocol's name
        outputs: list[tuple[TensorSpec, Array]] | None,
        prediction_id: str,
        run: BatchOutputs | None = None,
        indices: tuple[int, ...] | None = None,
        start: int = 0,
        rows: int = 0,
    ) -> None:
        """Either `outputs`, or rows `start` to `start + rows` of a `run`: those of its outputs that `indices` name.

        `indices` stand in the order in which the outputs were asked for; None is all of them.
        """
        self.key = key
        self.id = id
        self._tensors = outputs
        self.prediction_id = prediction_id
        self.run = run
        self.indices = indices
        self.start = start
        self.rows = rows
        self.forms: tuple[OutputForm, ...] | None = None
        """As the request has them."""
        self.labels: Mapping[str, tuple[str, ...]] = {}
        """Names of the classes by output, where `forms` may ask for classes."""

    @property
    def outputs(self) -> list[tuple[TensorSpec, Array]]:
        """Specification and values of each output."""
        if self._tensors is None:
            assert self.run is not None  # noqa: S101 -- one of the two is always given
            indices = range(len(self.run.specs)) if self.indices is None else self.indices
            stop = self.start + self.rows
            self._tensors = [(self.run.specs[i], self.run.arrays[i][self.start : stop]) for i in indices]
        return self._tensors

    def note_encoded(self) -> None:
        """The answer is written: whoever wants to know when the first of the run's was learns it."""
        if self.run is not None and self.run.on_encoded is not None:
            self.run.on_encoded()


def cut(array: Array, axis: int, start: int, stop: int) -> Array:
    """A view of what lies from `start` to `stop` on an axis."""
    return array[(slice(None),) * axis + (slice(start, stop),)]


def string_array(values: list[str], shape: tuple[int, ...]) -> Array:
    """An object array, without numpy guessing nested structure from the strings."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)
