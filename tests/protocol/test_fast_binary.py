"""The decoder that remembers what the JSON of a binary request says is the one that does not, only faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.protocol.fast_binary import MAX_PLAN_BYTES, MAX_PLANS, BinaryDecoder
from gateway.protocol.json_codec import decode_request
from gateway.protocol.raw_tensor import RawParts
from gateway.types import InferenceRequest, Signature, TensorSpec
from tests.protocol.test_binary_codec import SIGNATURE, T_BYTES, TEXT_INPUT, X_BYTES, Y, raw_input


def plan_request(rows: int, text: str, **more: Any) -> tuple[bytes, bytes]:
    """A JSON text and what is behind it, for `SIGNATURE`."""
    words = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for _ in range(rows))
    values = np.full((rows, 2), rows, np.float32).tobytes()
    inputs = [raw_input(shape=[rows, 2], size=len(values)), raw_input("t", "BYTES", [rows], len(words))]
    return orjson.dumps({"inputs": inputs, **more}), values + words


def decoded(decode: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the message of its refusal."""
    try:
        return decode(*arguments)
    except GatewayError as error:
        return error.message


@given(
    data=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from(["", "a", "zwölf"]),
            st.sampled_from(
                [
                    {},
                    {"id": "one"},
                    {"parameters": {"binary_data_output": True}},
                    {"parameters": {"priority": 1}},
                    {"outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]},
                    {"outputs": [{"name": "nothing"}]},
                ]
            ),
            st.sampled_from([None, "2"]),
            st.integers(0, 7),
            st.sampled_from(["", "cut", "more", "flip"]),
        ),
        max_size=12,
    )
)
def test_the_second_request_with_the_same_json_means_what_the_first_did(data: Any) -> None:
    decoder = BinaryDecoder(SIGNATURE)
    for rows, text, more, version, shift, damage in data:
        head, behind = plan_request(rows, text, **more)
        if damage:
            behind = {"cut": behind[:-1], "more": behind + b"!", "flip": behind[:-1] + b"\xff"}[damage]
        # At any alignment.
        body = memoryview(bytes(shift) + head + behind)[shift:]
        for _ in range(2):
            expected = decoded(decode_request, head, "m", version, {}, RawParts(memoryview(behind)))
            got = decoded(decoder.decode, body, len(head), "m", version, {})
            if isinstance(got, str):
                assert got == expected
                continue
            request, inputs = got
            assert isinstance(expected, InferenceRequest)
            assert (request.version, request.id) == (expected.version, expected.id)
            assert (request.outputs, request.forms) == (expected.outputs, expected.forms)
            assert inputs.keys() == expected.inputs.keys()
            for name, array in inputs.items():
                assert array.dtype == expected.inputs[name].dtype
                assert array.flags.aligned
                np.testing.assert_array_equal(array, expected.inputs[name])
            if request.fits is not None:
                assert request.fits is SIGNATURE
                assert request.rows == rows


def test_the_second_request_is_known_to_fit() -> None:
    decoder = BinaryDecoder(SIGNATURE)
    head, behind = plan_request(2, "a")
    first, _ = decoder.decode(head + behind, len(head), "m", None, {})
    second, inputs = decoder.decode(head + behind, len(head), "m", None, {})
    third, _ = decoder.decode(head + behind, len(head), "m", None, {})
    assert first.fits is None
    assert second.fits is SIGNATURE
    assert second is third
    assert inputs["x"].shape == (2, 2)


def test_aligned_tensors_are_views_of_the_body() -> None:
    decoder = BinaryDecoder(Signature((TensorSpec("x", "FP32", (-1, 2)),), (Y,)))
    head = orjson.dumps({"inputs": [raw_input()]})
    head += b" " * (-len(head) % 16)
    body = bytearray(head + X_BYTES)
    for _ in range(2):
        _, inputs = decoder.decode(memoryview(body), len(head), "m", None, {})
        body[-4:] = np.float32(9.0).tobytes()
        assert inputs["x"][0, 1] == 9.0
        body[-8:] = X_BYTES


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [raw_input(), TEXT_INPUT], "id": "one"},
        {"inputs": [raw_input(), TEXT_INPUT], "parameters": {"timeout": 1}},
        {"inputs": [raw_input(), TEXT_INPUT], "outputs": [{"name": "nothing"}]},
        {"inputs": [raw_input("other"), TEXT_INPUT]},
        {"inputs": [raw_input(shape=[2, 1]), TEXT_INPUT]},
        {"inputs": [raw_input(datatype="INT32"), TEXT_INPUT]},
    ],
)
def test_what_does_not_fit_or_wants_more_is_not_remembered(document: Any) -> None:
    decoder = BinaryDecoder(SIGNATURE)
    head = orjson.dumps(document)
    for _ in range(2):
        request, _ = decoder.decode(head + X_BYTES + T_BYTES, len(head), "m", None, {})
        assert request.fits is None


def test_what_is_remembered_is_bounded() -> None:
    decoder = BinaryDecoder(SIGNATURE)
    long = b" " * MAX_PLAN_BYTES
    head, behind = plan_request(1, "a")
    for _ in range(2):
        request, _ = decoder.decode(long + head + behind, len(long + head), "m", None, {})
        assert request.fits is None
    for number in range(3 * MAX_PLANS):
        padded = head + b" " * number
        decoder.decode(padded + behind, len(padded), "m", None, {})
        assert len(decoder._plans) <= MAX_PLANS
