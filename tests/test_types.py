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


def test_a_model_without_inputs_has_no_rows_to_share() -> None:
    assert not Signature((), (TensorSpec("y", "FP32", (-1,)),)).is_batchable


def test_a_model_key_reads_as_name_and_version() -> None:
    assert str(ModelKey("employment", "2")) == "employment/2"


@pytest.mark.parametrize(("values", "shape"), [([], (0, 2)), (["a"], ()), (["ab", "cd"], (2,)), (["ab", "cd"], (2, 1))])
def test_strings_stay_whole(values: list[str], shape: tuple[int, ...]) -> None:
    array = string_array(values, shape)
    assert (array.dtype, array.shape, array.ravel().tolist()) == (np.dtype(object), shape, values)
