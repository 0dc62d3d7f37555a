"""From tensors to the columns that are watched: one array of shape [rows] for each feature and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gateway.protocol.log_codec import LogEntry
from gateway.runtime.manifest import LABEL_COLUMN, SCORE_COLUMN, Manifest, Prediction
from gateway.types import Array


def columns_of(manifest: Manifest, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Raises `ValueError` naming the tensor that does not fit the manifest."""
    tables = {name: _table(array) for name, array in inputs.items()}
    columns = {feature.name: _column(tables, feature.input, feature.column, "input") for feature in manifest.features}
    columns[LABEL_COLUMN] = _label(manifest.prediction, outputs)
    if manifest.prediction.score is not None:
        columns[SCORE_COLUMN] = _score(manifest.prediction.score, outputs)
    return columns


def stack(entries: Sequence[LogEntry]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs and outputs of entries with the same layout, one below the other."""
    return _concatenate([entry.inputs for entry in entries]), _concatenate([entry.outputs for entry in entries])


def layout(entry: LogEntry) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Entries with the same layout can be stacked."""
    tensors = (*entry.inputs.items(), *entry.outputs.items())
    return tuple((name, array.dtype.str, array.shape[1:]) for name, array in tensors)


def _concatenate(tensors: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if len(tensors) == 1:
        return dict(tensors[0])
    return {name: np.concatenate([part[name] for part in tensors]) for name in tensors[0]}


def _table(array: Array) -> Array:
    """Rows by elements, row-major."""
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _column(tables: Mapping[str, Array], name: str, index: int, what: str) -> Array:
    if name not in tables:
        raise ValueError(f"{what} {name!r} is missing")
    table = tables[name]
    if index >= table.shape[1]:
        raise ValueError(f"{what} {name!r} has {table.shape[1]} elements a row, the manifest asks for number {index}")
    return table[:, index]


def _label(prediction: Prediction, outputs: Mapping[str, Array]) -> Array:
    if prediction.output not in outputs:
        raise ValueError(f"output {prediction.output!r} is missing")
    table = _table(outputs[prediction.output])
    if table.shape[1] != 1:
        raise ValueError(f"output {prediction.output!r} has {table.shape[1]} elements a row, expected one answer")
    return table[:, 0]


def _score(name: str, outputs: Mapping[str, Array]) -> Array:
    """Two classes: the probability of the second. More: that of the answer, which is the largest."""
    if name not in outputs:
        raise ValueError(f"output {name!r} is missing")
    table = _table(outputs[name])
    if table.shape[1] == 0 or table.dtype.kind not in "fiu":
        raise ValueError(f"output {name!r} holds no probabilities")
    return table[:, -1] if table.shape[1] <= 2 else table.max(axis=1)
