from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.errors import InferenceFailed, InvalidRequest
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.protocol.signature import check_request
from gateway.protocol.v1_codec import TENSORFLOW_TYPES, Form, decode_predict, encode_predict, metadata
from gateway.types import Array, InferenceResponse, ModelKey, Signature, TensorSpec, string_array

ROWS = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
BARE = Signature((TensorSpec("x", "INT64", (-1,)),), (TensorSpec("y", "INT64", (-1,)),))
SCALAR = Signature((TensorSpec("x", "FP32", ()),), (TensorSpec("y", "FP32", ()),))
TEXT = Signature((TensorSpec("x", "BYTES", (-1, 1)),), (TensorSpec("y", "BYTES", (-1, 1)),))
TWO = Signature(
    (TensorSpec("numeric", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1,))),
    (TensorSpec("label", "INT64", (-1,)), TensorSpec("score", "FP32", (-1, 2))),
)
ROWS_OF_TWO = [{"numeric": [1, 2], "city": "Oslo"}, {"numeric": [3, 4], "city": "Rome"}]


def decode(document: Any, signature: Signature = ROWS) -> dict[str, Array]:
    content = document if isinstance(document, bytes) else orjson.dumps(document)
    return decode_predict(content, signature)[0]


def encode(outputs: dict[str, Array], form: Form) -> Any:
    named = {str(dtype): name for name, dtype in NUMPY_DTYPES.items()}
    tensors = [(TensorSpec(name, named[str(a.dtype)], a.shape), a) for name, a in outputs.items()]
    return orjson.loads(encode_predict(InferenceResponse(ModelKey("m", "1"), None, tensors, "id"), form))


def arrays(datatype: str) -> st.SearchStrategy[Array]:
    return hnp.arrays(NUMPY_DTYPES[datatype], hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))


class TestRequests:
    @pytest.mark.parametrize(
        "document",
        [
            {"instances": [[1, 2, 3], [4, 5, 6]]},
            {"instances": [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]},
            {"instances": [[1, 2, 3], {"x": [4, 5, 6]}]},
            {"inputs": [[1, 2, 3], [4, 5, 6]]},
            {"inputs": {"x": [[1, 2, 3], [4, 5, 6]]}},
            {"inputs": [[1, 2, 3], [4, 5, 6]], "signature_name": "serving_default"},
        ],
    )
    def test_rows_and_columns_say_the_same(self, document: dict[str, Any]) -> None:
        inputs = decode(document)
        assert inputs.keys() == {"x"}
        assert inputs["x"].dtype == np.float32
        assert inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]

    @pytest.mark.parametrize(
        "document",
        [{"instances": ROWS_OF_TWO}, {"inputs": {"city": ["Oslo", "Rome"], "numeric": [[1, 2], [3, 4]]}}],
    )
    def test_several_inputs_go_by_name(self, document: dict[str, Any]) -> None:
        inputs = decode(document, TWO)
        assert list(inputs) == ["numeric", "city"]
        assert inputs["numeric"].tolist() == [[1, 2], [3, 4]]
        assert inputs["city"].tolist() == ["Oslo", "Rome"]

    def test_the_form_is_told(self) -> None:
        assert decode_predict(b'{"instances": [1]}', BARE)[1] == "instances"
        assert decode_predict(b'{"inputs": [1]}', BARE)[1] == "inputs"

    def test_a_row_may_be_a_bare_value(self) -> None:
        assert decode({"instances": [7, 2**60]}, BARE)["x"].tolist() == [7, 2**60]
        assert decode({"instances": [{"x": 7}, 8]}, BARE)["x"].tolist() == [7, 8]

    def test_a_tensor_without_dimensions_is_a_bare_value(self) -> None:
        for document in ({"inputs": 2.5}, {"inputs": {"x": 2.5}}):
            assert decode(document, SCALAR)["x"].shape == ()
            assert decode(document, SCALAR)["x"] == 2.5

    @pytest.mark.parametrize("form", ["instances", "inputs"])
    def test_a_string_may_be_given_by_its_base64(self, form: str) -> None:
        word = {"b64": base64.b64encode("zwölf".encode()).decode()}
        assert decode({form: [[word], ["a"]]}, TEXT)["x"].tolist() == [["zwölf"], ["a"]]

    def test_a_row_of_one_string_may_be_its_base64(self) -> None:
        signature = Signature((TensorSpec("x", "BYTES", (-1,)),), ())
        assert decode({"instances": [{"b64": "YQ=="}, {"x": {"b64": "Yg=="}}]}, signature)["x"].tolist() == ["a", "b"]

    @given(
        array=st.sampled_from(["BOOL", "INT8", "INT64", "UINT64"]).flatmap(arrays),
        is_by_row=st.booleans(),
        is_named=st.booleans(),
    )
    def test_values_and_shapes_survive(self, array: Array, is_by_row: bool, is_named: bool) -> None:
        datatype = next(name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
        signature = Signature((TensorSpec("x", datatype, (-1,) * array.ndim),), ())
        value: Any = array.tolist()
        if is_named:
            value = [{"x": row} for row in value] if is_by_row else {"x": value}
        decoded = decode({"instances" if is_by_row else "inputs": value}, signature)["x"]
        assert decoded.dtype == array.dtype
        assert decoded.shape == array.shape
        assert (decoded == array).all()
        assert check_request({"x": decoded}, None, signature, 10) >= 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (b"", "body: not JSON"),
            (b"[]", "body: expected a JSON object"),
            (b'{"instances": [[NaN, 1, 2]]}', "body: not JSON"),
            (b'{"instances": ' + b"[" * 2_000, "body: not JSON"),
            ({}, "body: expected either instances (rows) or inputs (columns), got neither"),
            ({"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, "body: expected either instances (rows) or inputs"),
            ({"instances": [[1, 2, 3]], "parameters": {}}, "unknown key 'parameters'; known keys: instances, inputs"),
            ({"instances": [[1, 2, 3]], "signature_name": "other"}, "signature_name: expected 'serving_default'"),
            ({"instances": [[1, 2, 3]], "signature_name": None}, "signature_name: expected 'serving_default'"),
            ({"instances": []}, "instances: expected a non-empty list of rows, got []"),
            ({"instances": {"x": [1, 2, 3]}}, "instances: expected a non-empty list of rows, got {"),
            ({"instances": None}, "instances: expected a non-empty list of rows, got None"),
            ({"instances": [1, 2, 3]}, "instances[0]: expected lists nested as shape [3] says (-1 is any), got 1"),
            ({"instances": [[1, 2, 3], [1, 2]]}, "instances[1]: expected lists nested as shape [3] says"),
            ({"instances": [[1, 2, 3], None]}, "instances[1]: expected lists nested as shape [3] says"),
            ({"instances": [[1, 2, 3], [1, "2", 3]]}, "instances[1][1]: expected FP32, got a string"),
            ({"instances": [[1, 2, 3], [1, True, 3]]}, "instances[1][1]: expected FP32, got a bool"),
            ({"instances": [[1, 2, 3], [1, None, 3]]}, "instances[1][1]: expected FP32, got null"),
            ({"instances": [[1, 2, 3], [1, [2], 3]]}, "instances[1][1]: expected FP32, got a list"),
            ({"instances": [[1, 2, 3], [1, 1e39, 3]]}, "instances[1][1]: 1e+39 does not fit FP32"),
            ({"instances": [{"x": [1, 2, 3]}, {"x": [1, 2, "3"]}]}, "instances[1].x[2]: expected FP32, got a string"),
            ({"instances": [{"y": [1, 2, 3]}]}, "instances[0]: missing input 'x'; the model's inputs: x"),
            ({"instances": [{"x": [1, 2, 3], "y": 1}]}, "instances[0]: unknown input 'y'; the model's inputs: x"),
            ({"instances": [{}]}, "instances[0]: missing input 'x'"),
            ({"inputs": [1, 2, 3]}, "inputs[0]: expected lists nested as shape [3] says (-1 is any), got 1"),
            ({"inputs": 1}, "inputs: expected lists nested as shape [-1, 3] says (-1 is any), got 1 on axis 0"),
            ({"inputs": []}, "inputs: expected lists nested as shape [-1, 3] says (-1 is any), got a list of 0"),
            ({"inputs": {"x": [[1, 2, 3], [1, 2, "3"]]}}, "inputs.x[1][2]: expected FP32, got a string"),
            ({"inputs": {"z": [[1, 2, 3]]}}, "inputs: missing input 'x'"),
        ],
    )
    def test_what_was_wrong_is_named(self, document: Any, message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            decode(document)
        assert caught.value.message.startswith(message)

    @pytest.mark.parametrize(
        ("document", "signature", "message"),
        [
            ({"instances": [1, 2.5]}, BARE, "instances[1]: expected INT64, got 2.5"),
            ({"instances": [1, 2**63]}, BARE, "instances[1]: 9223372036854775808 does not fit INT64"),
            ({"instances": [1, [2]]}, BARE, "instances[1]: expected INT64, got a list"),
            ({"instances": [1]}, SCALAR, "instances: input 'x' is a single value without rows; send inputs instead"),
            ({"inputs": "one"}, SCALAR, "inputs[0]: expected FP32, got a string"),
            ({"instances": [["a"], [1]]}, TEXT, "instances[1][0]: expected a BYTES string, got a number"),
            ({"instances": [[{"b64": "ä"}]]}, TEXT, "instances[0][0]: expected a string or {"),
            ({"instances": [[{"b64": "/w=="}]]}, TEXT, "instances[0][0]: expected a string or {"),
            ({"instances": [[{"b64": 7}]]}, TEXT, "instances[0][0]: expected a string or {"),
            ({"instances": [[{"b65": "YQ=="}]]}, TEXT, "instances[0][0]: expected a string or {"),
            ({"instances": [[{"b64": "YQ==", "x": 1}]]}, TEXT, "instances[0][0]: expected a string or {"),
            ({"instances": [{"b64": "YQ=="}]}, BARE, "instances[0]: expected INT64, got an object"),
            (
                {"instances": [[1, 2]]},
                TWO,
                "instances[0]: expected an object with the inputs numeric, city, got [1, 2]",
            ),
            ({"instances": [*ROWS_OF_TWO, {"city": "Bonn"}]}, TWO, "instances[2]: missing input 'numeric'"),
            ({"inputs": [[1, 2]]}, TWO, "inputs: expected an object with the inputs numeric, city"),
        ],
    )
    def test_what_the_model_does_not_take_is_named(self, document: Any, signature: Signature, message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            decode(document, signature)
        assert caught.value.message.startswith(message)

    def test_rows_that_differ_where_any_extent_is_right_are_refused(self) -> None:
        signature = Signature((TensorSpec("x", "FP32", (-1, -1)),), ())
        with pytest.raises(InvalidRequest, match=r"^instances: is not nested as shape \[2, 1\] says \(axis 1\)"):
            decode({"instances": [[1], [1, 2]]}, signature)

    def test_messages_stay_short(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            decode({"instances": [{"a" * 10_000: 1, "x": [1, 2, 3]}]})
        assert len(caught.value.message) < 300


class TestAnswers:
    def test_one_output_is_bare(self) -> None:
        outputs: dict[str, Array] = {"y": np.array([[0.1, 2], [3, 4]], np.float32)}
        assert encode(outputs, "instances") == {"predictions": [[0.1, 2.0], [3.0, 4.0]]}
        assert encode(outputs, "inputs") == {"outputs": [[0.1, 2.0], [3.0, 4.0]]}

    def test_several_outputs_go_by_name(self) -> None:
        outputs: dict[str, Array] = {
            "label": np.array([0, 2**60], np.longlong),
            "score": np.array([[0.1, 0.9], [1, 0]], np.float32),
            "name": string_array(["a", "b"], (2,)),
        }
        assert encode(outputs, "instances") == {
            "predictions": [
                {"label": 0, "score": [0.1, 0.9], "name": "a"},
                {"label": 2**60, "score": [1.0, 0.0], "name": "b"},
            ]
        }
        assert encode(outputs, "inputs") == {
            "outputs": {"label": [0, 2**60], "score": [[0.1, 0.9], [1.0, 0.0]], "name": ["a", "b"]}
        }

    def test_a_slice_of_a_transposed_array_is_written_as_it_reads(self) -> None:
        assert encode({"y": np.arange(6).reshape(3, 2).T[1:]}, "instances") == {"predictions": [[1, 3, 5]]}

    def test_an_output_without_dimensions_is_a_column_but_no_row(self) -> None:
        outputs: dict[str, Array] = {"y": np.array(0.1, np.float32)}
        assert encode(outputs, "inputs") == {"outputs": 0.1}
        with pytest.raises(InvalidRequest, match="send inputs instead"):
            encode(outputs, "instances")

    def test_outputs_that_differ_in_rows_are_columns_but_no_rows(self) -> None:
        outputs: dict[str, Array] = {"y": np.zeros(2), "z": np.zeros((3, 1))}
        assert encode(outputs, "inputs") == {"outputs": {"y": [0.0, 0.0], "z": [[0.0], [0.0], [0.0]]}}
        with pytest.raises(InvalidRequest, match=r"differ in rows \(axis 0\): 'y' \[2\], 'z' \[3, 1\]"):
            encode(outputs, "instances")

    @pytest.mark.parametrize("form", ["instances", "inputs"])
    def test_what_json_cannot_hold_is_an_error(self, form: Form) -> None:
        with pytest.raises(InferenceFailed, match=r"output 'y': data\[1\] is nan"):
            encode({"y": np.array([1, np.nan], np.float32)}, form)


class TestMetadata:
    def test_it_is_that_of_tensorflow_serving(self) -> None:
        assert metadata(ModelKey("m", "3"), ROWS) == {
            "model_spec": {"name": "m", "signature_name": "", "version": "3"},
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        "serving_default": {
                            "inputs": {"x": tensor_info("x")},
                            "outputs": {"y": tensor_info("y")},
                            "method_name": "tensorflow/serving/predict",
                        }
                    }
                }
            },
        }

    def test_every_datatype_has_a_name_there(self) -> None:
        assert NUMPY_DTYPES.keys() <= TENSORFLOW_TYPES.keys()


def tensor_info(name: str) -> dict[str, Any]:
    dimensions = [{"size": "-1", "name": ""}, {"size": "3", "name": ""}]
    return {"dtype": "DT_FLOAT", "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": name}
