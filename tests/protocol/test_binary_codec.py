"""A JSON text and the bytes of tensors behind it: taken as meant, or refused by the name of what is wrong."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.errors import InferenceFailed, InvalidRequest, Unsupported
from gateway.protocol.binary_codec import decode_raw_request, encode_response, json_length
from gateway.protocol.json_codec import decode_request
from gateway.protocol.raw_tensor import RawParts
from gateway.types import (
    Array,
    BatchOutputs,
    InferenceRequest,
    InferenceResponse,
    ModelKey,
    OutputForm,
    Signature,
    TensorSpec,
    string_array,
)

KEY = ModelKey("m", "1")
BINARY, JSON = OutputForm(is_binary=True), OutputForm()
Y, Z, S = TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "INT64", (-1,)), TensorSpec("s", "BYTES", (-1,))
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1,))), (Y, Z))
X = np.array([[1.5, -2.0]], np.float32)
X_BYTES = X.tobytes()
T_BYTES = b"\x02\0\0\0ab"


def raw_input(name: str = "x", datatype: Any = "FP32", shape: Any = (1, 2), size: Any = 8, **more: Any) -> Any:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}, **more}


TEXT_INPUT = raw_input("t", "BYTES", (1,), len(T_BYTES))


def decode(document: Any, behind: bytes) -> InferenceRequest:
    return decode_request(orjson.dumps(document), "m", None, {}, RawParts(memoryview(behind)))


class TestLength:
    @pytest.mark.parametrize(("announced", "size", "length"), [("0", 0, 0), ("134", 142, 134), ("007", 7, 7)])
    def test_it_is_a_number_of_bytes_of_the_body(self, announced: str, size: int, length: int) -> None:
        assert json_length(announced, size) == length

    @pytest.mark.parametrize("announced", ["", "-1", "+1", "1.0", "x", "0x10", "1 2", "\u0663", "1_0", "12" * 9 + "x"])
    def test_anything_but_digits_is_refused(self, announced: str) -> None:
        with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length: expected a number of bytes"):
            json_length(announced, 100)

    @pytest.mark.parametrize("announced", ["101", "9" * 19, "9" * 100_000])
    def test_more_than_the_body_is_refused(self, announced: str) -> None:
        with pytest.raises(InvalidRequest, match="bytes of JSON, but the body has 100") as caught:
            json_length(announced, 100)
        assert len(caught.value.message) < 300


class TestRequests:
    def test_tensors_follow_the_json_in_the_order_of_the_inputs(self) -> None:
        request = decode({"inputs": [TEXT_INPUT, raw_input()]}, T_BYTES + X_BYTES)
        assert request.inputs["t"].tolist() == ["ab"]
        np.testing.assert_array_equal(request.inputs["x"], X)
        assert request.forms is None

    def test_json_and_binary_may_be_mixed(self) -> None:
        text = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["json"]}
        request = decode({"inputs": [text, raw_input()]}, X_BYTES)
        assert request.inputs["t"].tolist() == ["json"]
        np.testing.assert_array_equal(request.inputs["x"], X)

    @pytest.mark.parametrize(
        ("more", "outputs", "forms"),
        [
            ({}, None, None),
            ({"parameters": {"binary_data_output": False}}, None, None),
            ({"parameters": {"binary_data_output": True}}, None, (BINARY,)),
            ({"parameters": {"binary_data_output": True}, "outputs": []}, None, (BINARY,)),
            ({"outputs": [{"name": "y"}]}, ("y",), None),
            ({"outputs": [{"name": "y", "parameters": {"binary_data": False}}]}, ("y",), None),
            ({"outputs": [{"name": "y", "parameters": {"classification": 0}}]}, ("y",), None),
            (
                {"outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]},
                ("z", "y"),
                (BINARY, JSON),
            ),
            (
                {
                    "outputs": [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
                    "parameters": {"binary_data_output": True},
                },
                ("z", "y"),
                (JSON, BINARY),
            ),
            ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, ("y",), (OutputForm(False, 3),)),
        ],
    )
    def test_the_flag_of_an_output_wins_over_that_of_the_request(
        self, more: Any, outputs: tuple[str, ...] | None, forms: tuple[OutputForm, ...] | None
    ) -> None:
        request = decode({"inputs": [raw_input()], **more}, X_BYTES)
        assert (request.outputs, request.forms) == (outputs, forms)

    @pytest.mark.parametrize(
        ("document", "behind", "message"),
        [
            ({"inputs": [raw_input(size=-8)]}, X_BYTES, "binary_data_size: expected a whole number of bytes, got -8"),
            ({"inputs": [raw_input(size=8.0)]}, X_BYTES, "binary_data_size: expected a whole number of bytes, got 8.0"),
            ({"inputs": [raw_input(size=True)]}, X_BYTES, "expected a whole number of bytes, got True"),
            ({"inputs": [raw_input(size="8")]}, X_BYTES, "expected a whole number of bytes, got '8'"),
            ({"inputs": [raw_input(size=12)]}, X_BYTES, "inputs[0].parameters.binary_data_size: 12 bytes, of which 8"),
            ({"inputs": [raw_input(size=2**62)]}, X_BYTES, f"{2**62} bytes, of which 8 came"),
            ({"inputs": [raw_input(size=4)]}, X_BYTES, "inputs[0]: 4 bytes do not fill shape [1, 2] of FP32"),
            ({"inputs": [raw_input()]}, X_BYTES + b"!", "body: 1 bytes too many after the last tensor"),
            ({"inputs": [raw_input()]}, b"", "8 bytes, of which 0 came"),
            ({"inputs": [raw_input(), raw_input()]}, X_BYTES * 2, "inputs[1].name: input 'x' occurs twice"),
            ({"inputs": [raw_input(data=[1, 2])]}, X_BYTES, "the tensor has `data` as well; send one of the two"),
            ({"inputs": [raw_input(data=None)]}, X_BYTES, "the tensor has `data` as well"),
            ({"inputs": [raw_input(shape=[2**40, 2**40])]}, X_BYTES, "inputs[0]: 8 bytes do not fill shape"),
            ({"inputs": [raw_input(shape=[-1, 2])]}, X_BYTES, "inputs[0].shape: expected a list of whole numbers"),
            ({"inputs": [raw_input(shape=[0, 2**62, 2**62], size=0)]}, b"", "inputs[0].shape: "),
            ({"inputs": [raw_input(shape=[1] * 65)]}, X_BYTES, "inputs[0].shape: at most 64 dimensions, got 65"),
            ({"inputs": [raw_input(shape=None)]}, X_BYTES, "inputs[0].shape: expected a list"),
            ({"inputs": [raw_input(datatype="FLOAT")]}, X_BYTES, "inputs[0].datatype: expected one of BOOL"),
            ({"inputs": [raw_input(datatype=7)]}, X_BYTES, "inputs[0].datatype: expected one of BOOL"),
            ({"inputs": [raw_input("t", "BYTES", [1])]}, b"\x05\0\0\0abcd", "element 0 claims 5 bytes, 4 are left"),
            ({"inputs": [raw_input("t", "BYTES", [1])]}, b"\x04\0\0\0ab\xffc", "element 0 is not UTF-8"),
            ({"inputs": [raw_input("t", "BYTES", [2**40])]}, X_BYTES, f"8 bytes cannot hold {2**40} elements"),
            ({"inputs": [raw_input("b", "BOOL", [8])]}, b"\0\1\2\0\0\0\0\0", "element 2 is 2; a BOOL is 0 or 1"),
            (
                {"inputs": [raw_input()], "parameters": {"binary_data_output": 1}},
                X_BYTES,
                "parameters.binary_data_output: expected true or false, got 1",
            ),
            (
                {"inputs": [raw_input()], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
                X_BYTES,
                "outputs[0].parameters.binary_data: expected true or false, got 'yes'",
            ),
            (
                {"inputs": [raw_input()], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
                X_BYTES,
                "outputs[0].parameters.classification: expected a number of classes, got -1",
            ),
        ],
    )
    def test_what_cannot_be_is_refused_by_name(self, document: Any, behind: bytes, message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            decode(document, behind)
        assert message in caught.value.message
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 300

    def test_without_the_header_there_are_no_bytes_to_take(self) -> None:
        with pytest.raises(InvalidRequest, match="send Inference-Header-Content-Length"):
            decode_request(orjson.dumps({"inputs": [raw_input()]}), "m", None, {})

    def test_shared_memory_is_not_supported(self) -> None:
        shared = {"shared_memory_region": "r"}
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": shared}
        with pytest.raises(Unsupported, match="shared memory is not supported"):
            decode({"inputs": [tensor]}, b"")
        with pytest.raises(Unsupported, match="shared memory is not supported"):
            decode({"inputs": [raw_input()], "outputs": [{"name": "y", "parameters": shared}]}, X_BYTES)

    @pytest.mark.parametrize(
        ("document", "behind"),
        [
            ({"inputs": [raw_input(shape=[2**31, 2**31])]}, bytes(2**20)),
            ({"inputs": [raw_input("t", "BYTES", [2**30], 2**20)]}, b"\xff" * 2**20),
            ({"inputs": [raw_input("t", "BYTES", [2**18], 2**20)]}, b"\xff" * 2**20),
            ({"inputs": [raw_input(size=2**40)]}, bytes(2**20)),
        ],
    )
    def test_nothing_is_allocated_and_no_time_is_spent_before_the_check(self, document: Any, behind: bytes) -> None:
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(InvalidRequest):
            decode(document, behind)
        seconds = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 100_000
        assert seconds < 0.1


class TestRawRequests:
    def decode(self, spec: TensorSpec, body: bytes) -> Array:
        request = decode_raw_request(body, Signature((spec,), (Y,)), "m", None, {})
        assert request.forms == (BINARY,)
        assert request.outputs is None
        return request.inputs[spec.name]

    @pytest.mark.parametrize(
        ("shape", "size", "expected"),
        [((-1, 2), 24, (3, 2)), ((2, 2), 16, (2, 2)), ((), 4, ()), ((2, -1, 3), 48, (2, 2, 3)), ((-1, 2), 0, (0, 2))],
    )
    def test_the_one_variable_dimension_is_found_out(
        self, shape: tuple[int, ...], size: int, expected: tuple[int, ...]
    ) -> None:
        body = np.arange(size // 4, dtype=np.float32).tobytes()
        array = self.decode(TensorSpec("x", "FP32", shape), body)
        assert array.shape == expected
        assert array.tobytes() == body

    @pytest.mark.parametrize("shape", [(-1,), (1,), (-1, 1)])
    def test_bytes_are_one_element_without_its_length(self, shape: tuple[int, ...]) -> None:
        array = self.decode(TensorSpec("t", "BYTES", shape), "zwölf".encode())
        assert array.tolist() == np.full((1,) * len(shape), "zwölf", object).tolist()

    @pytest.mark.parametrize(
        ("spec", "body", "message"),
        [
            (TensorSpec("x", "FP32", (-1, -1)), bytes(8), "leaves one dimension to be found out"),
            (TensorSpec("x", "FP32", (-1, 2)), bytes(9), "9 bytes are no whole number of rows of 8 bytes"),
            (TensorSpec("x", "FP32", (-1, 0)), bytes(9), "9 bytes are no whole number of rows of 0 bytes"),
            (TensorSpec("x", "FP32", (2, 2)), bytes(12), "12 bytes do not fill shape [2, 2]"),
            (TensorSpec("t", "BYTES", (-1, 2)), b"ab", "a raw body is one BYTES element"),
            (TensorSpec("t", "BYTES", (1,)), b"\xff", "element 0 is not UTF-8"),
            (TensorSpec("b", "BOOL", (-1,)), b"\2", "a BOOL is 0 or 1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, spec: TensorSpec, body: bytes, message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            self.decode(spec, body)
        assert caught.value.message.startswith(f"input {spec.name!r}: ")
        assert message in caught.value.message

    def test_a_model_with_several_inputs_takes_none(self) -> None:
        with pytest.raises(InvalidRequest, match="0 is for models with one input; this one takes x, t"):
            decode_raw_request(b"", SIGNATURE, "m", None, {})


def response(*outputs: tuple[TensorSpec, Array], forms: Any, id_: str | None = None) -> InferenceResponse:
    made = InferenceResponse(KEY, id_, list(outputs), "pid")
    made.forms = forms
    return made


class TestResponses:
    def test_the_bytes_follow_the_json_in_the_order_of_the_outputs(self) -> None:
        z = np.array([7], np.int64)
        body, length = encode_response(response((Y, X), (S, string_array(["ab"], (1,))), (Z, z), forms=(BINARY,)))
        assert length is not None
        assert orjson.loads(body[:length]) == {
            "model_name": "m",
            "model_version": "1",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                {"name": "s", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
                {"name": "z", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
            ],
        }
        assert body[length:] == X_BYTES + T_BYTES + z.tobytes()

    def test_each_output_has_its_own_form(self) -> None:
        z = np.array([7], np.int64)
        body, length = encode_response(response((Z, z), (Y, X), forms=(JSON, BINARY), id_="a"))
        document = orjson.loads(body[:length])
        assert document["id"] == "a"
        assert document["outputs"][0] == {"name": "z", "shape": [1], "datatype": "INT64", "data": [7]}
        assert document["outputs"][1]["parameters"] == {"binary_data_size": 8}
        assert body[length:] == X_BYTES

    def test_without_bytes_nothing_is_said_of_where_they_begin(self) -> None:
        empty = np.empty((1, 0), np.float32)
        body, length = encode_response(response((Y, empty), forms=(BINARY,)))
        assert length is None
        assert orjson.loads(body)["outputs"][0]["parameters"] == {"binary_data_size": 0}

    def test_rows_of_a_run_are_cut_out_of_it(self) -> None:
        run = BatchOutputs((Y, Z), [np.arange(8, dtype=np.float32).reshape(4, 2), np.arange(4)])
        made = InferenceResponse(KEY, None, None, "pid", run, (1, 0), 1, 2)
        made.forms = (BINARY, BINARY)
        body, length = encode_response(made)
        assert body[length:] == np.array([1, 2]).tobytes() + np.arange(2, 6, dtype=np.float32).tobytes()
        assert run.texts is None

    def test_numbers_that_json_cannot_hold_pass_in_binary_only(self) -> None:
        values = np.array([[np.nan, np.inf]], np.float32)
        body, length = encode_response(response((Y, values), forms=(BINARY,)))
        assert body[length:] == values.tobytes()
        with pytest.raises(InferenceFailed, match=r"data\[0\] is nan, which JSON cannot hold; v2 gives it as binary"):
            encode_response(response((Y, values), (Y, X), forms=(JSON, BINARY)))
