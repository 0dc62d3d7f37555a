from __future__ import annotations

import numpy as np
import pytest

from gateway.types import ModelKey, Signature, TensorSpec, string_array


def signature(*shapes: tuple[int, ...]) -> Signature:
    first, *rest = (TensorSpec(f"t{index}", "FP32", shape) for index, shape in enumerate(shapes))
    return Signature((first,), tuple(rest))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((-1, 3), (-1,)), True),
        (((-1, -1), (-1, 2), (-1,)), True),
        (((1, 3), (-1,)), False),
        (((-1, 3), (1,)), False),
        (((-1, 3), (-1,), (2, -1)), False),
        (((), (-1,)), False),
        (((-1, 3), ()), False),
    ],
)
def test_rows_share_a_run_only_if_axis_0_of_every_tensor_is_variable(
    shapes: tuple[tuple[int, ...], ...], expected: bool
) -> None:
    assert signature(*shapes).is_batchable is expected


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ((0, 0, 0), False),
        ((0, 1, 0), True),
        ((0, None, 0), True),
        ((None, 1, 0), True),
        ((None, None, 0), False),
        ((0, 1, None), False),
        ((0, 2, 0), False),
    ],
)
def test_rows_may_lie_on_any_variable_axis_of_some_input_and_every_output(
    axes: tuple[int | None, ...], expected: bool
) -> None:
    shapes = ((-1, 3), (2, -1), (-1,))
    first, second, output = (
        TensorSpec(f"t{index}", "FP32", shape, axis)
        for index, (shape, axis) in enumerate(zip(shapes, axes, strict=True))
    )
    found = Signature((first, second), (output,))
    assert found.is_batchable is expected
    assert not found.has_rows_first
    assert Signature((first._replace(axis=0),), (output._replace(axis=0),)).has_rows_first


def test_a_model_without_inputs_has_no_rows_to_share() -> None:
    assert not Signature((), (TensorSpec("y", "FP32", (-1,)),)).is_batchable


def test_a_model_key_reads_as_name_and_version() -> None:
    assert str(ModelKey("employment", "2")) == "employment/2"


@pytest.mark.parametrize(("values", "shape"), [([], (0, 2)), (["a"], ()), (["ab", "cd"], (2,)), (["ab", "cd"], (2, 1))])
def test_strings_stay_whole(values: list[str], shape: tuple[int, ...]) -> None:
    array = string_array(values, shape)
    assert (array.dtype, array.shape, array.ravel().tolist()) == (np.dtype(object), shape, values)
