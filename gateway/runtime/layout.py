"""From the tensors of several callers to those of one run, and back: what the signature of a model asks for.

Nearly all models have their rows on axis 0 of every tensor; what is done for them is in `work.py`. The precise way here
is for those with rows elsewhere, with inputs that hold for all rows of a run, or with padded sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from gateway.runtime.padding import Padding
from gateway.runtime.work import Batch, Bucket, Shapes, Work, gather
from gateway.types import Array, Signature, TensorSpec


def has_rows(array: Array, axis: int | None, rows: int) -> bool:
    """Whether there are as many on the axis."""
    return axis is not None and array.shape[axis : axis + 1] == (rows,)


class Layout:
    """Of one model version."""

    bucket_of: Callable[[Work], Bucket] | None
    """Which works may share a run; None where all may. Raises `InvalidRequest` for inputs that do not fit together."""
    gather: Callable[[list[Work], int], dict[str, Array] | None]
    """As in `work.py`."""

    def __init__(self, signature: Signature, padding: Padding | None = None, *, shares_runs: bool = True) -> None:
        """`signature` is what clients see. Without `shares_runs` its rows are counted, but each caller runs alone."""
        self.signature = signature
        self.padding = padding
        self.shares_runs = shares_runs and signature.is_batchable
        self.is_simple = padding is None and (signature.has_rows_first or not signature.is_batchable)
        """Every caller's rows lie on axis 0, as they came; or else callers run alone."""
        self._names = [spec.name for spec in signature.inputs]
        self._axes = [spec.axis or 0 for spec in signature.outputs]
        if self.is_simple:
            # Of a model with fixed rows all requests are alike.
            has_many = self.shares_runs and any(-1 in spec.shape[1:] for spec in signature.inputs)
            self.bucket_of = self._shapes if has_many else None
            self.gather = gather
        else:
            self.bucket_of = self._precise_bucket
            self.gather = self._gather

    def has_rows(self, outputs: list[Array], rows: int) -> bool:
        """Whether every output of a run has them."""
        return all(has_rows(output, axis, rows) for output, axis in zip(outputs, self._axes, strict=True))

    def output_of(self, batch: Batch, work: Work, index: int) -> Array:
        """A caller's part of an output."""
        array = batch.rows_of(work, batch.outputs[index], self._axes[index])
        if self.padding is None:
            return array
        return self.padding.cut_back(self.signature.outputs[index].name, array, work)

    def rows_first(self, outputs: list[Array]) -> list[Array]:
        """The outputs of a run with rows, which lie on axis 0 afterwards."""
        if self.is_simple:
            return outputs
        return [np.moveaxis(output, axis, 0) for output, axis in zip(outputs, self._axes, strict=True)]

    def shapes_of(self, bucket: Bucket) -> Shapes:
        """The shapes of a bucket's rows: what else stands there says nothing about the time of a run."""
        if self.bucket_of is None or not self.shares_runs:
            return ()
        # What follows keeps a single work apart.
        known: Any = bucket[: len(self._names)]
        if self.is_simple:
            return known  # type: ignore[no-any-return]
        specs = self.signature.inputs
        return tuple(part[0] if spec.axis is None else part for part, spec in zip(known, specs, strict=True))

    def _shapes(self, work: Work) -> Bucket:
        # In the model's order: callers name their inputs in any.
        return work.shapes(self._names)

    def _precise_bucket(self, work: Work) -> Bucket:
        if self.padding is not None:
            self.padding.length_of(work)
        return tuple(self._likeness(work, spec) for spec in self.signature.inputs) if self.shares_runs else ()

    def _likeness(self, work: Work, spec: TensorSpec) -> Hashable:
        """What must be the same of an input."""
        array = work.inputs[spec.name]
        if spec.axis is None:
            return array.shape, tuple(array.ravel().tolist()) if array.dtype.hasobject else array.tobytes()
        shape = array.shape if self.padding is None else self.padding.shape(spec.name, array.shape)
        return shape[: spec.axis] + shape[spec.axis + 1 :]

    def _gather(self, works: list[Work], _rows: int) -> dict[str, Array] | None:
        if not works:
            return None
        inputs = {} if self.padding is None else self.padding.gather(works)
        for spec in self.signature.inputs:
            if spec.name not in inputs:
                parts = [work.inputs[spec.name] for work in works]
                # One for all rows stands in the bucket, so all callers sent the same.
                is_one = spec.axis is None or len(parts) == 1
                inputs[spec.name] = parts[0] if is_one else np.concatenate(parts, spec.axis or 0)
        return inputs
