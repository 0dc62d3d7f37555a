"""A request that does not fit the model is refused before any work, with what was expected and what came."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.signature import check_request
from gateway.types import Array, Signature, TensorSpec, string_array

TWO_INPUTS = Signature(
    inputs=(TensorSpec("x", "FP32", (-1, 3)), TensorSpec("s", "BYTES", (-1, -1))),
    outputs=(TensorSpec("label", "INT64", (-1,)), TensorSpec("probability", "FP32", (-1, 2))),
)
FIXED = Signature(inputs=(TensorSpec("x", "FP32", (2, 3)),), outputs=(TensorSpec("y", "FP32", (2, 3)),))
SCALAR = Signature(inputs=(TensorSpec("x", "FP32", ()),), outputs=(TensorSpec("y", "FP32", ()),))


def numbers(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def strings(*shape: int) -> Array:
    return string_array([""] * int(np.prod(shape)), shape)


def check(inputs: dict[str, Array], outputs: tuple[str, ...] | None = None, signature: Signature = TWO_INPUTS) -> int:
    return check_request(inputs, outputs, signature, max_rows=4)


def test_a_fitting_request_gives_its_rows() -> None:
    assert check({"x": numbers(3, 3), "s": strings(3, 5)}) == 3


def test_the_order_of_the_inputs_does_not_matter() -> None:
    assert check({"s": strings(2, 1), "x": numbers(2, 3)}) == 2


def test_any_of_the_outputs_may_be_asked_for_in_any_order() -> None:
    assert check({"x": numbers(1, 3), "s": strings(1, 1)}, ("probability", "label")) == 1


@pytest.mark.parametrize(("signature", "shape"), [(FIXED, (2, 3)), (SCALAR, ())])
def test_a_model_without_a_row_axis_counts_as_one_row(signature: Signature, shape: tuple[int, ...]) -> None:
    assert check({"x": numbers(*shape)}, signature=signature) == 1


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": numbers(1, 3)}, None, "missing input 's'; the model's inputs: x, s"),
        ({"x": numbers(1, 3), "s": strings(1, 1), "t": numbers(1)}, None, "unknown input 't'"),
        ({"x": numbers(1, 3), "s": strings(1, 1)}, ("y",), "unknown output 'y'; the model's outputs: label, probab"),
        (
            {"x": numbers(1, 3).astype(np.float64), "s": strings(1, 1)},
            None,
            "input 'x': expected datatype FP32, got FP64",
        ),
        ({"x": strings(1, 3), "s": strings(1, 1)}, None, "input 'x': expected datatype FP32, got BYTES"),
        ({"x": numbers(1, 4), "s": strings(1, 1)}, None, "input 'x': expected shape [-1, 3] (-1 is any), got [1, 4]"),
        ({"x": numbers(3), "s": strings(1, 1)}, None, "input 'x': expected shape [-1, 3]"),
        ({"x": numbers(1, 3, 1), "s": strings(1, 1)}, None, "input 'x': expected shape [-1, 3]"),
        ({"x": numbers(2, 3), "s": strings(1, 1)}, None, "the inputs differ in rows (axis 0): 'x' 2, 's' 1"),
        ({"x": numbers(0, 3), "s": strings(0, 1)}, None, "the batch is empty"),
        ({"x": numbers(5, 3), "s": strings(5, 1)}, None, "5 rows in one request; this model takes at most 4"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    inputs: dict[str, Array], outputs: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(inputs, outputs)
    assert caught.value.message.startswith(message)


STATEFUL = Signature(
    inputs=(
        TensorSpec("x", "FP32", (-1, 3)),
        TensorSpec("h", "FP32", (2, -1), 1),
        TensorSpec("r", "FP32", (-1,), None),
    ),
    outputs=(TensorSpec("y", "FP32", (-1,)),),
)


def test_rows_are_counted_where_they_lie_and_an_input_for_all_of_them_has_none() -> None:
    inputs = {"x": numbers(4, 3), "h": numbers(2, 4)}
    for extent in (0, 1, 7):
        assert check({**inputs, "r": numbers(extent)}, signature=STATEFUL) == 4


def test_rows_on_different_axes_that_differ_are_refused_naming_both() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check({"x": numbers(2, 3), "h": numbers(2, 3), "r": numbers(1)}, signature=STATEFUL)
    assert caught.value.message == "the inputs differ in rows: 'x' 2 (axis 0), 'h' 3 (axis 1)"


def test_fixed_extents_are_checked_on_every_axis() -> None:
    with pytest.raises(InvalidRequest, match=r"expected shape \[2, 3\]"):
        check({"x": numbers(1, 3)}, signature=FIXED)
