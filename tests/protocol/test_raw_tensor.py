"""Raw bytes become the tensor that was meant, or a refusal that names it; nothing in between."""

from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gateway.errors import InvalidRequest
from gateway.protocol.datatypes import BF16_DTYPE, BYTES, NUMPY_DTYPES, RAW_DTYPES
from gateway.protocol.raw_tensor import decode_raw, encode_raw
from gateway.types import Array, string_array

PATH = "inputs[0]"
SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = [datatype for datatype in RAW_DTYPES if datatype != BYTES]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def refusal(datatype: str, shape: Any, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode_raw(datatype, shape, data, PATH)
    assert caught.value.message.startswith(PATH)
    return caught.value.message


@st.composite
def text_arrays(draw: st.DrawFn) -> Array:
    shape = draw(SHAPES)
    size = math.prod(shape)
    return string_array(draw(st.lists(TEXTS, min_size=size, max_size=size)), shape)


def framed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


class TestNumbers:
    @pytest.mark.parametrize("datatype", NUMBERS)
    @given(data=st.data())
    def test_they_come_back_bit_for_bit_at_any_alignment(self, datatype: str, data: st.DataObject) -> None:
        array = data.draw(arrays(RAW_DTYPES[datatype], SHAPES))
        raw = bytes(encode_raw(datatype, array))
        assert raw == array.tobytes()
        offset = data.draw(st.integers(0, 7))
        view = memoryview(bytes(offset) + raw)[offset:]
        decoded = decode_raw(datatype, array.shape, view, PATH)
        assert decoded.dtype == RAW_DTYPES[datatype]
        assert decoded.shape == array.shape
        assert decoded.flags.aligned
        assert decoded.tobytes() == raw

    def test_aligned_bytes_are_not_copied(self) -> None:
        raw = bytearray(np.arange(4, dtype=np.float32).tobytes())
        decoded = decode_raw("FP32", [2, 2], memoryview(raw), PATH)
        raw[:4] = struct.pack("<f", 7.0)
        assert decoded[0, 0] == 7.0

    def test_contiguous_arrays_are_not_copied_and_others_are_written_in_order(self) -> None:
        array = np.arange(6, dtype=np.int16).reshape(2, 3)
        encoded = encode_raw("INT16", array)
        array[0, 0] = 9
        assert bytes(encoded) == array.tobytes()
        assert bytes(encode_raw("INT16", array.T)) == array.T.tobytes()

    def test_the_order_of_bytes_is_little_endian(self) -> None:
        assert decode_raw("INT32", [1], b"\x01\x02\x00\x00", PATH).tolist() == [513]
        assert bytes(encode_raw("INT32", np.array([513], np.int32))) == b"\x01\x02\x00\x00"

    def test_bf16_keeps_its_bits_and_is_taken_for_no_other_datatype(self) -> None:
        decoded = decode_raw("BF16", [2], b"\x80\x3f\x00\x40", PATH)
        assert decoded.dtype == BF16_DTYPE
        assert decoded.dtype not in NUMPY_DTYPES.values()
        # A bfloat16 is the upper half of a float32.
        bits = decoded["bf16"].astype(np.uint32) << 16
        assert bits.view(np.float32).tolist() == [1.0, 2.0]
        assert bytes(encode_raw("BF16", np.concatenate([decoded, decoded]))) == b"\x80\x3f\x00\x40" * 2

    def test_numbers_that_json_cannot_hold_pass(self) -> None:
        raw = np.array([np.nan, np.inf, -np.inf], np.float64).tobytes()
        assert decode_raw("FP64", [3], raw, PATH).tobytes() == raw

    @pytest.mark.parametrize("datatype", NUMBERS)
    @given(shape=SHAPES, extra=st.integers(-3, 3).filter(bool))
    def test_bytes_that_do_not_fill_the_shape_are_refused(
        self, datatype: str, shape: tuple[int, ...], extra: int
    ) -> None:
        expected = math.prod(shape) * RAW_DTYPES[datatype].itemsize
        given_bytes = max(0, expected + extra)
        if given_bytes != expected:
            message = refusal(datatype, shape, bytes(given_bytes))
            assert f"{given_bytes} bytes do not fill shape {list(shape)} of {datatype}" in message
            assert message.endswith(f"takes {expected}")

    def test_a_bool_is_0_or_1(self) -> None:
        assert decode_raw("BOOL", [3], b"\0\1\0", PATH).tolist() == [False, True, False]
        assert "element 2 is 255" in refusal("BOOL", [4], b"\0\1\xff\2")


class TestBytes:
    @given(array=text_arrays())
    def test_texts_come_back(self, array: Array) -> None:
        raw = encode_raw(BYTES, array)
        assert raw == framed(*(text.encode() for text in array.ravel()))
        for data in (bytes(raw), memoryview(raw)):
            decoded = decode_raw(BYTES, array.shape, data, PATH)
            assert decoded.dtype == object
            assert decoded.shape == array.shape
            assert decoded.tolist() == array.tolist()

    @given(size=st.integers(0, 4), raw=st.binary(max_size=40))
    def test_junk_is_refused_or_says_exactly_what_its_bytes_say(self, size: int, raw: bytes) -> None:
        try:
            decoded = decode_raw(BYTES, [size], raw, PATH)
        except InvalidRequest:
            refusal(BYTES, [size], raw)
        else:
            assert encode_raw(BYTES, decoded) == raw

    @pytest.mark.parametrize(
        ("size", "raw", "message"),
        [
            (1, b"\x05\0\0\0abc", "element 0 claims 5 bytes, 3 are left"),
            (2, framed(b"a") + b"\xff\xff\xff\xffb", "element 1 claims 4294967295 bytes, 1 are left"),
            (2, framed(b"abcd"), "the bytes end before the length of element 1"),
            (1, framed(b"a", b"b"), "5 bytes are left over after 1 elements"),
            (0, b"a", "1 bytes are left over after 0 elements"),
            (3, framed(b"a"), "5 bytes cannot hold 3 elements"),
            (2, framed(b"a", b"\xc3\x28"), "element 1 is not UTF-8"),
        ],
    )
    def test_false_lengths_and_foreign_encodings_name_the_element(self, size: int, raw: bytes, message: str) -> None:
        assert message in refusal(BYTES, [size], raw)


class TestShapes:
    @pytest.mark.parametrize("datatype", RAW_DTYPES)
    @pytest.mark.parametrize("shape", [[2**40, 2**40], [2**62], [2**31, 2**31, 2**31]])
    def test_a_huge_shape_is_refused_before_anything_is_allocated(self, datatype: str, shape: list[int]) -> None:
        tracemalloc.start()
        refusal(datatype, shape, bytes(16))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000

    @pytest.mark.parametrize("shape", [[-1], [2, -3], [-2, -2]])
    def test_a_negative_extent_is_refused(self, shape: list[int]) -> None:
        assert "whole numbers from 0 on" in refusal("FP32", shape, bytes(16))

    def test_more_dimensions_than_numpy_has_are_refused(self) -> None:
        assert decode_raw("INT8", [1] * 64, b"\1", PATH).ndim == 64
        assert "at most 64 dimensions, got 65" in refusal("INT8", [1] * 65, b"\1")

    @pytest.mark.parametrize("datatype", ["FP64", BYTES])
    def test_an_extent_of_0_does_not_let_a_huge_one_pass(self, datatype: str) -> None:
        assert ".shape" in refusal(datatype, [0, 2**62, 2**62], b"")

    def test_a_scalar_has_one_element(self) -> None:
        scalar = decode_raw("INT64", [], struct.pack("<q", -5), PATH)
        assert isinstance(scalar, np.ndarray)
        assert scalar.shape == ()
        assert scalar == -5
        assert bytes(encode_raw("INT64", scalar)) == struct.pack("<q", -5)

    def test_an_unknown_datatype_is_refused_with_the_known_ones(self) -> None:
        message = refusal("FLOAT", [1], bytes(4))
        assert "FP32" in message
        assert "BF16" in message
        assert "got 'FLOAT'" in message
