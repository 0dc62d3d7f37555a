from __future__ import annotations

import math
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from gateway.errors import InvalidRequest
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.runtime.engine.arena import ALIGNMENT
from gateway.runtime.engine.tensors import pack, row_bytes, unpack
from gateway.types import Array, TensorSpec, string_array

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    datatype = draw(st.sampled_from(list(NUMPY_DTYPES)))
    shape = draw(SHAPES)
    if datatype == BYTES:
        size = math.prod(shape)
        return string_array(draw(st.lists(st.text(), min_size=size, max_size=size)), shape)
    array: Array = draw(arrays_of.arrays(NUMPY_DTYPES[datatype], shape))
    return array


def spec_of(number: int, array: Array) -> TensorSpec:
    (datatype,) = [name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype]
    return TensorSpec(f"x{number}", datatype, array.shape)


@given(given_arrays=st.lists(tensors(), max_size=4), blocks_before=st.integers(0, 3))
def test_what_was_packed_is_unpacked_bit_for_bit(given_arrays: list[Array], blocks_before: int) -> None:
    specs = [spec_of(number, array) for number, array in enumerate(given_arrays)]
    start = blocks_before * ALIGNMENT
    packed = pack(specs, given_arrays)
    memory = mmap.mmap(-1, start + packed.size + 1)
    packed.write(memory, start)
    for array, copy in zip(given_arrays, unpack(specs, packed.places, memory, start), strict=True):
        assert (array.dtype, array.shape) == (copy.dtype, copy.shape)
        if array.dtype == object:
            assert array.tolist() == copy.tolist()
        else:
            # As bytes: NaN is not equal to itself.
            assert array.tobytes() == copy.tobytes()
            assert copy.ctypes.data % ALIGNMENT == 0 or not copy.size


def test_rows_of_a_column_that_lie_apart_are_packed_as_they_read() -> None:
    matrix = np.arange(12, dtype=np.int32).reshape(3, 4)
    spec = TensorSpec("x", "INT32", (-1,))
    packed = pack([spec], [matrix[:, 1]])
    memory = mmap.mmap(-1, packed.size)
    packed.write(memory, 0)
    assert unpack([spec], packed.places, memory, 0)[0].tolist() == [1, 5, 9]


@pytest.mark.parametrize("layout", [[([2, 2], 16)], [([2], 4)], [([-1], 4)]])
def test_what_does_not_lie_there_is_refused(layout: list[tuple[list[int], int]]) -> None:
    memory = mmap.mmap(-1, 8)
    with pytest.raises((InvalidRequest, ValueError)):
        unpack([TensorSpec("x", "FP32", (-1, -1))], layout, memory, 0)


def test_the_room_for_a_row_is_never_too_small_where_the_shape_is_known() -> None:
    specs = [TensorSpec("a", "FP64", (-1, 3)), TensorSpec("b", "BOOL", (-1,)), TensorSpec("c", "INT8", (-1, 65))]
    for rows in (1, 2, 7, 100):
        arrays = [np.zeros((rows, *spec.shape[1:]), NUMPY_DTYPES[spec.datatype]) for spec in specs]
        assert pack(specs, arrays).size <= rows * row_bytes(specs)
