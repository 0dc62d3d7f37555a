"""The greatest values of each row, as Triton writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.classification import check_classes, formed_outputs
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.types import Array, InferenceResponse, ModelKey, OutputForm, Signature, TensorSpec


def classes(array: Array, count: int, shape: tuple[int, ...], labels: tuple[str, ...] = ()) -> tuple[TensorSpec, Any]:
    response = InferenceResponse(ModelKey("m", "1"), None, [(TensorSpec("y", "FP32", shape), array)], "pid")
    response.forms = (OutputForm(classes=count),)
    response.labels = {"y": labels}
    ((spec, values, form),) = formed_outputs(response)
    assert form.classes == count
    assert values.dtype == object
    return spec, values.tolist()


def test_each_row_has_its_greatest_first_and_equals_in_their_order() -> None:
    array = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.5]], np.float32)
    spec, values = classes(array, 2, (-1, 3))
    assert spec == TensorSpec("y", "BYTES", (2, 2))
    assert values == [["0.700000:1", "0.200000:2"], ["0.500000:0", "0.500000:2"]]


def test_labels_follow_where_there_is_one_for_each_value() -> None:
    array = np.array([[1, 3, 2]], np.int64)
    assert classes(array, 9, (-1, 3), ("a", "b", "c"))[1] == [["3:1:b", "2:2:c", "1:0:a"]]
    assert classes(array, 1, (-1, 3), ("a", "b"))[1] == [["3:1"]]


@pytest.mark.parametrize(
    ("array", "shape", "expected"),
    [
        (np.array([1.0, 2.0], np.float32), (-1,), [["1.000000:0"], ["2.000000:0"]]),
        (np.array([1.0, 2.0], np.float32), (2,), ["2.000000:1", "1.000000:0"]),
        (np.array([[[1, 4], [3, 2]]], np.int8), (-1, 2, 2), [["4:1", "3:2"]]),
        (np.array(3, np.int32), (), ["3:0"]),
        (np.empty((2, 0), np.float32), (-1, 0), [[], []]),
        (np.array([[np.nan, 1.0, np.inf]], np.float64), (-1, 3), [["inf:2", "1.000000:1"]]),
        (np.array([[0, 2**64 - 1, 1]], np.uint64), (-1, 3), [[f"{2**64 - 1}:1", "1:2"]]),
        (np.array([[-(2**63), 2**63 - 1, 0]], np.int64), (-1, 3), [[f"{2**63 - 1}:1", "0:2"]]),
        (np.array([[0.5, 1.5]], np.float16), (-1, 2), [["1.500000:1", "0.500000:0"]]),
    ],
)
def test_rows_extremes_and_what_is_no_number(array: Array, shape: tuple[int, ...], expected: Any) -> None:
    assert classes(array, 2, shape)[1] == expected


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_outputs_without_numbers_are_refused(datatype: str) -> None:
    signature = Signature((), (TensorSpec("y", datatype, (-1, 3)),))
    if datatype in {"BOOL", "BYTES"}:
        with pytest.raises(
            InvalidRequest, match=f"output 'y': classification takes numbers, this output is {datatype}"
        ):
            check_classes(("y",), (OutputForm(classes=1),), signature)
    else:
        check_classes(("y",), (OutputForm(classes=1),), signature)
    check_classes(("y",), (OutputForm(is_binary=True),), signature)
    check_classes(None, (OutputForm(is_binary=True),), signature)
