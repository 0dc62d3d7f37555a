"""Messages become the request that was meant, or a refusal that names the field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tritonclient.grpc import service_pb2 as pb

from gateway.api.grpc.codec import CONTENTS, decode_request, encode_response
from gateway.errors import GatewayError, InvalidRequest, Unsupported
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import InferenceResponse, ModelKey, OutputForm, TensorSpec, string_array
from tests.support.rpc import raw_request, typed_request

NUMBERS = [datatype for datatype in CONTENTS if datatype != BYTES]
FOUR = np.arange(4, dtype=np.float32).tobytes()


def refusal(message: pb.ModelInferRequest, kind: type[GatewayError] = InvalidRequest) -> str:
    with pytest.raises(kind) as caught:
        decode_request(message, {})
    return caught.value.message


def two_inputs(first: str = "a", second: str = "b", raw: tuple[bytes, ...] = ()) -> pb.ModelInferRequest:
    tensors = [{"name": name, "datatype": "FP32", "shape": [1]} for name in (first, second)]
    return pb.ModelInferRequest(model_name="m", inputs=tensors, raw_input_contents=raw)


class TestTyped:
    @pytest.mark.parametrize("datatype", NUMBERS)
    @given(data=st.data())
    def test_numbers_come_as_they_were_sent(self, datatype: str, data: st.DataObject) -> None:
        shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
        array = data.draw(arrays(NUMPY_DTYPES[datatype], shapes))
        decoded = decode_request(typed_request("m", array, datatype), {}).inputs["x"]
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)

    def test_texts_come_as_they_were_sent(self) -> None:
        array = string_array(["", "a\0b", "ключ"], (3, 1))
        decoded = decode_request(typed_request("m", array, BYTES), {}).inputs["x"]
        assert decoded.tolist() == array.tolist()

    @pytest.mark.parametrize(
        ("datatype", "value"), [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)]
    )
    def test_an_integer_that_does_not_fit_is_named(self, datatype: str, value: int) -> None:
        array = np.array([1, value])
        message = refusal(typed_request("m", array, datatype))
        assert message.startswith(f"inputs[0].contents.{CONTENTS[datatype]}[1]: {value} does not fit {datatype}")

    @pytest.mark.parametrize("datatype", ["FP16", "BF16"])
    def test_what_has_no_typed_form_is_to_be_sent_raw(self, datatype: str) -> None:
        tensor = {"name": "x", "datatype": datatype, "shape": [1]}
        message = refusal(pb.ModelInferRequest(inputs=[tensor]))
        assert message == f"inputs[0].datatype: {datatype} has no contents; send it in raw_input_contents"

    @pytest.mark.parametrize(
        ("shape", "contents", "message"),
        [
            ([2], {"fp32_contents": [1.0]}, "inputs[0].contents.fp32_contents: 1 values do not fill shape [2]"),
            ([2**40, 2**40], {"fp32_contents": [1.0]}, "which takes"),
            ([2], {}, "0 values do not fill shape [2]"),
            ([-1], {"fp32_contents": [1.0]}, "inputs[0].shape: expected whole numbers from 0 on, got [-1]"),
            ([0, 2**62, 2**62], {}, "inputs[0].contents.fp32_contents.shape"),
            ([1], {"fp64_contents": [1.0]}, "inputs[0].contents.fp64_contents: expected FP32 values in fp32_contents"),
            ([1], {"fp32_contents": [1.0], "int_contents": [1]}, "inputs[0].contents.int_contents: expected"),
        ],
    )
    def test_contents_that_disagree_with_shape_or_datatype_are_named(
        self, shape: list[int], contents: dict[str, Any], message: str
    ) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": shape, "contents": contents}
        assert message in refusal(pb.ModelInferRequest(inputs=[tensor]))

    def test_bytes_that_are_no_text_are_named(self) -> None:
        tensor = {"name": "x", "datatype": BYTES, "shape": [2], "contents": {"bytes_contents": [b"a", b"\xff"]}}
        message = refusal(pb.ModelInferRequest(inputs=[tensor]))
        assert message.startswith("inputs[0].contents.bytes_contents: element 1 is not UTF-8")


class TestRaw:
    def test_entries_belong_to_the_inputs_in_order(self) -> None:
        values = [np.float32(value).tobytes() for value in (1.0, 2.0)]
        decoded = decode_request(two_inputs("b", "a", tuple(values)), {}).inputs
        assert {name: array.tolist() for name, array in decoded.items()} == {"b": [1.0], "a": [2.0]}

    @pytest.mark.parametrize("count", [1, 3])
    def test_as_many_entries_as_inputs(self, count: int) -> None:
        message = refusal(two_inputs(raw=(bytes(4),) * count))
        assert message.startswith(f"raw_input_contents: {count} entries for 2 inputs")

    def test_raw_and_typed_do_not_mix(self) -> None:
        message = typed_request("m", np.ones(1, np.float32), "FP32")
        message.raw_input_contents.append(bytes(4))
        assert refusal(message).startswith("inputs[0].contents: raw_input_contents hold the data of all inputs")

    @pytest.mark.parametrize(
        ("datatype", "shape", "data"),
        [
            ("FP32", [4], FOUR[:-1]),
            ("FP32", [4], FOUR + b"x"),
            ("FP32", [-4], FOUR),
            ("FP32", [2**62, 2**62], FOUR),
            ("FLOAT", [4], FOUR),
            (BYTES, [1], b"\xff\0\0\0a"),
            ("BOOL", [1], b"\2"),
        ],
    )
    def test_what_is_wrong_with_a_tensor_is_said_of_that_input(
        self, datatype: str, shape: list[int], data: bytes
    ) -> None:
        assert refusal(raw_request("m", data, shape, datatype)).startswith("inputs[0]")


class TestRequest:
    def test_all_of_it_arrives(self) -> None:
        message = raw_request("m", FOUR, [4], model_version="7", id="abc", outputs=[{"name": "q"}, {"name": "p"}])
        message.parameters["text"].string_param = "t"
        message.parameters["flag"].bool_param = False
        message.parameters["small"].int64_param = -1
        message.parameters["large"].uint64_param = 2**64 - 1
        message.parameters["real"].double_param = 0.5
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        request = decode_request(message, {"x-user": "u"})
        assert (request.model, request.version, request.id, request.outputs) == ("m", "7", "abc", ("q", "p"))
        assert request.parameters == {"text": "t", "flag": False, "small": -1, "large": 2**64 - 1, "real": 0.5}
        assert request.headers == {"x-user": "u"}

    def test_what_is_empty_was_not_sent(self) -> None:
        request = decode_request(raw_request("m", FOUR, [4]), {})
        assert (request.version, request.id, request.outputs, request.parameters) == (None, None, None, {})

    def test_names_are_unique_and_not_empty(self) -> None:
        assert refusal(two_inputs("a", "a")).startswith("inputs[0].contents")
        raw = (bytes(4), bytes(4))
        assert refusal(two_inputs("a", "a", raw)) == "inputs[1].name: input 'a' occurs twice"
        assert refusal(two_inputs("", "a", raw)) == "inputs[0].name: expected the name of an input"
        outputs = [{"name": "y"}, {"name": "y"}]
        assert refusal(raw_request("m", FOUR, [4], outputs=outputs)) == "outputs[1].name: output 'y' occurs twice"

    def test_a_parameter_has_a_value(self) -> None:
        message = raw_request("m", FOUR, [4])
        message.parameters["empty"].SetInParent()
        assert refusal(message) == "parameters.empty: expected a value"

    def test_shared_memory_is_refused_with_what_to_do_instead(self) -> None:
        message = raw_request("m", FOUR, [4])
        message.inputs[0].parameters["shared_memory_region"].string_param = "r"
        assert "inputs[0].parameters.shared_memory_region" in refusal(message, Unsupported)

    def test_an_output_may_be_asked_for_as_classes(self) -> None:
        message = raw_request("m", FOUR, [4], outputs=[{"name": "y"}, {"name": "z"}])
        message.outputs[1].parameters["classification"].int64_param = 3
        request = decode_request(message, {})
        assert request.outputs == ("y", "z")
        assert request.forms == (OutputForm(is_binary=True), OutputForm(is_binary=True, classes=3))
        message.outputs[1].parameters["classification"].string_param = "3"
        assert refusal(message) == "outputs[1].parameters.classification: expected a number of classes, got '3'"


class TestResponse:
    def test_classes_take_the_place_of_the_values(self) -> None:
        outputs = [(TensorSpec("y", "FP32", (-1, 2)), np.array([[0.25, 0.75]], np.float32))]
        response = InferenceResponse(ModelKey("m", "3"), None, outputs, "the id")
        response.forms, response.labels = (OutputForm(is_binary=True, classes=1),), {"y": ("no", "yes")}
        message = encode_response(response)
        assert (message.outputs[0].datatype, list(message.outputs[0].shape)) == (BYTES, [1, 1])
        assert message.raw_output_contents[0] == b"\x0e\0\0\x000.750000:1:yes"

    def test_outputs_leave_raw_in_their_order_with_the_prediction_id(self) -> None:
        outputs = [
            (TensorSpec("text", BYTES, (-1,)), string_array(["ab", ""], (2,))),
            (TensorSpec("number", "INT16", (-1, 2)), np.array([[1, 2]], np.int16)),
            (TensorSpec("scalar", "FP32", ()), np.array(np.nan, np.float32)),
        ]
        message = encode_response(InferenceResponse(ModelKey("m", "3"), "abc", outputs, "the id"))
        assert (message.model_name, message.model_version, message.id) == ("m", "3", "abc")
        assert message.parameters["prediction_id"].string_param == "the id"
        described = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in message.outputs]
        assert described == [("text", BYTES, [2]), ("number", "INT16", [1, 2]), ("scalar", "FP32", [])]
        assert not any(tensor.HasField("contents") for tensor in message.outputs)
        assert list(message.raw_output_contents) == [
            b"\2\0\0\0ab\0\0\0\0",
            b"\1\0\2\0",
            np.float32(np.nan).tobytes(),
        ]

    def test_without_an_id_none_is_made_up(self) -> None:
        assert encode_response(InferenceResponse(ModelKey("m", "3"), None, [], "i")).id == ""
