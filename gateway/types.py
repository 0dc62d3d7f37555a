"""The few shapes that every layer shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
JsonObject: TypeAlias = dict[str, Any]


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


class Signature(NamedTuple):
    """What a model version takes and gives, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def is_batchable(self) -> bool:
        """Rows of several callers may share a run when axis 0 of every tensor is variable."""
        tensors = self.inputs + self.outputs
        return bool(self.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in tensors)


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


@dataclass(slots=True)
class InferenceResponse:
    """The rows that belong to one request."""

    key: ModelKey
    id: str | None
    outputs: list[tuple[TensorSpec, Array]]
    prediction_id: str


def string_array(values: list[str], shape: tuple[int, ...]) -> Array:
    """An object array, without numpy guessing nested structure from the strings."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)
