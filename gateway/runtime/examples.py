"""A row to try a model with: a real one where the manifest knows one, else zeros."""

from __future__ import annotations

import math
from typing import Any

from gateway.protocol.datatypes import BYTES
from gateway.runtime.registry import ModelVersion
from gateway.types import TensorSpec


def example_row(version: ModelVersion, spec: TensorSpec) -> tuple[list[int], list[Any]]:
    """Shape and values, in row-major order, of one row of an input; a variable dimension has the extent 1."""
    shape = [1 if extent == -1 else extent for extent in spec.shape]
    known = version.manifest.example.get(spec.name) if version.manifest else None
    size = math.prod(shape)
    if known and len(known) == size:
        return shape, list(known)
    filler = {BYTES: "", "BOOL": False}.get(spec.datatype, 0)
    return shape, [filler] * size
