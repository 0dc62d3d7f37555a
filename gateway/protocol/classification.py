"""Triton's classification extension: an output as the greatest values of each row, with their index and label.

Each becomes a string `<value>:<index>[:<label>]`, the value as C's `%f` or `%d` writes it, the greatest first.
(Triton's `extension_classification.md`.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gateway.errors import InvalidRequest, shown
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import Array, InferenceResponse, OutputForm, Signature, TensorSpec


def class_count(parameters: Mapping[str, Any], path: str) -> int:
    """How many classes the parameters of an output ask for; 0 for none. Raises `InvalidRequest`."""
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidRequest(f"{path}.classification: expected a number of classes, got {shown(count)}")
    return count


def check_classes(outputs: Sequence[str] | None, forms: Sequence[OutputForm] | None, signature: Signature) -> None:
    """Raise `InvalidRequest` if classes are asked for of an output that holds no numbers."""
    if outputs is None or forms is None:
        return
    specs = {spec.name: spec for spec in signature.outputs}
    for name, form in zip(outputs, forms, strict=True):
        if form.classes and not is_classifiable(specs[name]):
            raise InvalidRequest(
                f"output {name!r}: classification takes numbers, this output is {specs[name].datatype}"
            )


def is_classifiable(spec: TensorSpec) -> bool:
    """Whether there is a greatest value in an output."""
    return NUMPY_DTYPES[spec.datatype].kind in "iuf"


def formed_outputs(response: InferenceResponse) -> Iterator[tuple[TensorSpec, Array, OutputForm]]:
    """Specification, values and form of each output, with classes in place of values where they are asked for."""
    forms = response.forms or (OutputForm(),)
    outputs = response.outputs
    if len(forms) == 1:
        forms *= len(outputs)
    for (spec, values), form in zip(outputs, forms, strict=True):
        if form.classes:
            yield *_classes(spec, values, form.classes, response.labels.get(spec.name, ())), form
        else:
            yield spec, values, form


def _classes(spec: TensorSpec, values: Array, count: int, labels: Sequence[str]) -> tuple[TensorSpec, Array]:
    values = np.moveaxis(values, spec.axis, 0) if spec.axis else values
    has_rows = spec.shape[:1] == (-1,) or values.ndim > 1
    table = values.reshape(len(values) if has_rows else 1, -1)
    # Both turn the order round without a number overflowing; NaN comes last, and the first of equals first.
    keys = -table if table.dtype.kind == "f" else ~table
    order = np.argsort(keys, axis=1, kind="stable")[:, :count]
    endings = [f":{index}" for index in range(table.shape[1])]
    if len(labels) == table.shape[1]:
        endings = [f"{ending}:{label}" for ending, label in zip(endings, labels, strict=True)]
    number = "{:f}" if table.dtype.kind == "f" else "{:d}"
    picked = np.take_along_axis(table, order, axis=1)
    texts = np.empty(order.shape, object)
    for place, index in np.ndenumerate(order):
        texts[place] = number.format(picked[place].item()) + endings[index]
    shape = order.shape if has_rows else order.shape[1:]
    return TensorSpec(spec.name, BYTES, shape), texts.reshape(shape)
