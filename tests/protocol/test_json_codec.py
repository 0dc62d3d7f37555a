"""Everything a client can put into a body comes back as the same values or as a 400 that names the field."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.errors import GatewayError, InferenceFailed, InvalidRequest
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.json_codec import decode_object, decode_request, encode_response
from gateway.types import Array, InferenceRequest, InferenceResponse, ModelKey, TensorSpec, string_array

EXAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True],
    "INT8": [-128, 127, 0, 1],
    "INT16": [-32_768, 32_767, 0, 1],
    "INT32": [-(2**31), 2**31 - 1, 0, 1],
    "INT64": [-(2**63), 2**63 - 1, 0, 1],
    "UINT8": [0, 255, 1, 2],
    "UINT16": [0, 65_535, 1, 2],
    "UINT32": [0, 2**32 - 1, 1, 2],
    "UINT64": [0, 2**64 - 1, 1, 2],
    "FP16": [-65_504.0, 65_504.0, 0.5, -0.0],
    "FP32": [-3.0e38, 3.0e38, 0.1, 1e-45],
    "FP64": [-1.7e308, 1.7e308, 0.1, 5e-324],
    "BYTES": ["", "zwölf", "\u0000", "𝄞"],
}


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}


def decode(document: Any, headers: dict[str, str] | None = None) -> InferenceRequest:
    return decode_request(orjson.dumps(document), "m", None, headers or {})


def decode_tensor(**changes: Any) -> Array:
    return decode({"inputs": [tensor(**changes)]}).inputs["x"]


def refusal(document: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(document)
    return caught.value.message


def tensor_refusal(**changes: Any) -> str:
    return refusal({"inputs": [tensor(**changes)]})


def expected_array(datatype: str) -> Array:
    if datatype == BYTES:
        return string_array(EXAMPLES[datatype], (2, 2))
    return np.array(EXAMPLES[datatype], NUMPY_DTYPES[datatype]).reshape(2, 2)


def test_every_datatype_of_the_protocol_has_an_example_here() -> None:
    assert EXAMPLES.keys() == NUMPY_DTYPES.keys()


@pytest.mark.parametrize("datatype", EXAMPLES)
@pytest.mark.parametrize("is_nested", [False, True], ids=["flat", "nested"])
def test_the_extremes_of_every_datatype_arrive(datatype: str, is_nested: bool) -> None:
    flat = EXAMPLES[datatype]
    array = decode_tensor(datatype=datatype, data=[flat[:2], flat[2:]] if is_nested else flat)
    assert array.dtype == NUMPY_DTYPES[datatype]
    assert array.shape == (2, 2)
    assert array.tolist() == expected_array(datatype).tolist()


@pytest.mark.parametrize("datatype", EXAMPLES)
def test_every_datatype_is_answered_in_its_own_type_and_shape(datatype: str) -> None:
    array = expected_array(datatype)
    response = InferenceResponse(ModelKey("m", "3"), None, [(TensorSpec("y", datatype, (-1, 2)), array)], "")
    document = orjson.loads(encode_response(response))
    assert document["model_name"] == "m"
    assert document["model_version"] == "3"
    (output,) = document["outputs"]
    assert output.keys() == {"name", "shape", "datatype", "data"}
    assert (output["name"], output["shape"], output["datatype"]) == ("y", [2, 2], datatype)
    dtype = NUMPY_DTYPES[datatype]
    assert np.array(output["data"], dtype).tolist() == array.ravel().tolist()


def arrays() -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    numeric = st.sampled_from([dtype for name, dtype in NUMPY_DTYPES.items() if name != BYTES])
    finite = {"allow_nan": False, "allow_infinity": False}
    numbers = numeric.flatmap(lambda dtype: hnp.arrays(dtype, shapes, elements=finite if dtype.kind == "f" else None))
    return numbers | hnp.arrays(np.dtype(object), shapes, elements=st.text(max_size=5))


@given(arrays(), st.booleans())
def test_what_is_encoded_decodes_to_the_same_values(array: Array, is_nested: bool) -> None:
    datatype = next(name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)
    response = InferenceResponse(ModelKey("m", "1"), "an id", [(TensorSpec("x", datatype, ()), array)], "")
    document = orjson.loads(encode_response(response))
    output = document["outputs"][0]
    if is_nested and array.ndim and array.size:
        output["data"] = array.tolist()
    again = decode({"id": document["id"], "inputs": [output]})
    assert again.id == "an id"
    assert again.inputs["x"].dtype == array.dtype
    assert again.inputs["x"].shape == array.shape
    assert again.inputs["x"].tolist() == array.tolist()


def test_the_id_is_echoed_if_and_only_if_it_was_sent() -> None:
    output = [(TensorSpec("y", "FP32", (1,)), np.ones(1, np.float32))]
    assert "id" not in orjson.loads(encode_response(InferenceResponse(ModelKey("m", "1"), None, output, "")))
    assert orjson.loads(encode_response(InferenceResponse(ModelKey("m", "1"), "", output, "")))["id"] == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_json_cannot_hold_is_an_error_that_names_it(value: float) -> None:
    array = np.array([[1.0], [value]])
    response = InferenceResponse(ModelKey("m", "1"), None, [(TensorSpec("y", "FP64", (-1, 1)), array)], "")
    with pytest.raises(InferenceFailed, match=r"output 'y': data\[1\]"):
        encode_response(response)


def test_outputs_that_are_not_contiguous_keep_their_row_order() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T
    response = InferenceResponse(ModelKey("m", "1"), None, [(TensorSpec("y", "INT64", (-1, 2)), array)], "")
    assert orjson.loads(encode_response(response))["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"inputs": [] } trailing',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[Infinity]}]}',
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}',
        b'{"inputs":[{"name":"\\ud800","shape":[1],"datatype":"FP32","data":[1]}]}',
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    ],
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body: not JSON"):
        decode_request(body, "m", None, {})


@pytest.mark.parametrize("number", ["NaN", "-NaN", "Infinity", "-Infinity", "nan", "-inf"])
@pytest.mark.parametrize(
    ("data", "place"),
    [("[%s]", "data[0]"), ("[1,2,%s]", "data[2]"), ("[[1,2],[3,%s]]", "data[3]"), ("[\n 1, %s,", "data[1]")],
)
def test_nan_and_infinity_are_refused_by_their_place(number: str, data: str, place: str) -> None:
    text = '{"id":"zwölf 𝄞","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + data % number
    message = f"body: not JSON: {place} is {number}, which JSON cannot hold; v2 takes it as binary tensor data"
    with pytest.raises(InvalidRequest) as caught:
        decode_request(text.encode(), "m", None, {})
    assert caught.value.message == message
    with pytest.raises(InvalidRequest, match=f": character 1 is {number}, which JSON cannot hold"):
        decode_request(f"[{number}]".encode(), "m", None, {})


@pytest.mark.parametrize("body", [b"[]", b"null", b'"inputs"', b"7", b"1.5", b"true"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="body: expected a JSON object"):
        decode_object(body)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "inputs: expected a non-empty list"),
        ({"inputs": []}, "inputs: expected a non-empty list"),
        ({"inputs": {"x": 1}}, "inputs: expected a non-empty list"),
        ({"inputs": [[]]}, "inputs[0]: expected an object"),
        ({"inputs": [{}]}, "inputs[0].name: expected a string"),
        ({"inputs": [tensor(name=1)]}, "inputs[0].name: expected a string"),
        ({"inputs": [tensor(), tensor()]}, "inputs[1].name: input 'x' occurs twice"),
        ({"inputs": [tensor(), tensor(name="y", data=None)]}, "inputs[1].data: expected a list"),
        ({"inputs": [tensor(parameters=[])]}, "inputs[0].parameters: expected an object"),
        ({"inputs": [tensor()], "id": 7}, "id: expected a string"),
        ({"inputs": [tensor()], "parameters": "p"}, "parameters: expected an object"),
        ({"inputs": [tensor()], "outputs": {"name": "y"}}, "outputs: expected a list"),
        ({"inputs": [tensor()], "outputs": ["y"]}, "outputs[0].name:"),
        ({"inputs": [tensor()], "outputs": [{"name": None}]}, "outputs[0].name:"),
        ({"inputs": [tensor()], "outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1].name: output 'y' occurs twice"),
    ],
)
def test_a_request_of_the_wrong_form_is_refused_naming_the_field(document: Any, message: str) -> None:
    assert refusal(document).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datatype": None}, "inputs[0].datatype: expected one of BOOL, "),
        ({"datatype": "float32"}, "inputs[0].datatype: expected one of BOOL, "),
        ({"datatype": "BF16"}, "inputs[0].datatype: BF16 has no JSON form; send the tensor as binary data"),
        ({"datatype": ["FP32"]}, "inputs[0].datatype: expected one of BOOL, "),
        ({"shape": None}, "inputs[0].shape: "),
        ({"shape": 4}, "inputs[0].shape: "),
        ({"shape": [2.0, 2]}, "inputs[0].shape: "),
        ({"shape": [True, 4]}, "inputs[0].shape: "),
        ({"shape": [-1, 2]}, "inputs[0].shape: "),
        ({"shape": [-2, -2]}, "inputs[0].shape: "),
        ({"shape": ["2", "2"]}, "inputs[0].shape: "),
        ({"shape": [3, 2]}, "inputs[0].data: 4 values do not fill shape [3, 2], which takes 6"),
        ({"shape": []}, "inputs[0].data: 4 values do not fill shape []"),
        ({"data": {}}, "inputs[0].data: expected a list, got an object"),
        ({"data": "1234"}, "inputs[0].data: expected a list, got a string"),
        ({"data": []}, "inputs[0].data: 0 values do not fill"),
        ({"data": [1, 2, None, 4]}, "inputs[0].data[2]: expected FP32, got null"),
        ({"data": [1, True, 3, 4]}, "inputs[0].data[1]: expected FP32, got a bool"),
        ({"data": [False, 2, 3, 4]}, "inputs[0].data[0]: expected FP32, got a bool"),
        ({"data": ["1", 2, 3, 4]}, "inputs[0].data[0]: expected FP32, got a string"),
        ({"data": [1, 2, 3, {}]}, "inputs[0].data[3]: expected FP32, got an object"),
        ({"data": [1, 2, 3, [4]]}, "inputs[0].data[3]: expected FP32, got a list"),
        ({"data": [1, 2, 3, 1e39]}, "inputs[0].data[3]: 1e+39 does not fit FP32"),
        ({"datatype": "FP16", "data": [1, 2, 3, 65_520]}, "inputs[0].data[3]: 65520.0 does not fit FP16"),
        ({"datatype": "FP16", "data": [1, -1e300, 3, 4]}, "inputs[0].data[1]: -1e+300 does not fit FP16"),
        ({"datatype": "INT8", "data": [1, 128, 3, 4]}, "inputs[0].data[1]: 128 does not fit INT8"),
        ({"datatype": "INT8", "data": [1, 2, 3, -129]}, "inputs[0].data[3]: -129 does not fit INT8"),
        ({"datatype": "UINT8", "data": [1, 2, -1, 4]}, "inputs[0].data[2]: -1 does not fit UINT8"),
        ({"datatype": "UINT8", "data": [256, 2, 1, 4]}, "inputs[0].data[0]: 256 does not fit UINT8"),
        ({"datatype": "INT32", "data": [1, 2, 3, 2**31]}, "inputs[0].data[3]: 2147483648 does not fit INT32"),
        ({"datatype": "INT64", "data": [1, 2, 2**63, 4]}, f"inputs[0].data[2]: {2**63} does not fit INT64"),
        ({"datatype": "UINT64", "data": [1, 2, 3, -1]}, "inputs[0].data[3]: -1 does not fit UINT64"),
        ({"datatype": "INT64", "data": [1, 2.0, 3, 4]}, "inputs[0].data[1]: expected INT64, got 2.0"),
        ({"datatype": "INT32", "data": [1, 2, 3, True]}, "inputs[0].data[3]: expected INT32, got a bool"),
        ({"datatype": "BOOL", "data": [True, 1, False, 0]}, "inputs[0].data[1]: expected BOOL, got 1"),
        ({"datatype": "BOOL", "data": [True, "true", True, True]}, "inputs[0].data[1]: expected BOOL, got a string"),
        ({"datatype": "BYTES", "data": ["a", "b", 3, "d"]}, "inputs[0].data[2]: expected a BYTES string"),
        ({"datatype": "BYTES", "data": ["a", None, "c", "d"]}, "inputs[0].data[1]: expected a BYTES string"),
    ],
)
def test_a_tensor_that_says_one_thing_and_holds_another_is_refused(changes: Any, message: str) -> None:
    assert tensor_refusal(**changes).startswith(message)


def test_a_whole_number_beyond_64_bits_is_refused() -> None:
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT64","data":[18446744073709551616]}]}'
    with pytest.raises(InvalidRequest, match=r"inputs\[0\].data\[0\]: expected UINT64"):
        decode_request(body, "m", None, {})


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b, c, d: [[a, b], [c]],
        lambda a, b, c, d: [[a, b, c], [d]],
        lambda a, b, c, d: [[a], [b], [c], [d]],
        lambda a, b, c, d: [[a, b, c, d]],
        lambda a, b, c, d: [[a, b], c, d],
        lambda a, b, c, d: [[[a, b], [c, d]]],
        lambda a, b, c, d: [[[a], [b]], [[c], [d]]],
        lambda a, b, c, d: [[a, b], [c, d], []],
        lambda a, b, c, d: [a, b, [c, d]],
    ],
)
def test_data_that_is_not_nested_as_the_shape_says_is_refused(datatype: str, nest: Any) -> None:
    assert tensor_refusal(datatype=datatype, data=nest(*EXAMPLES[datatype])).startswith("inputs[0].data")


@pytest.mark.parametrize("datatype", EXAMPLES)
@pytest.mark.parametrize(("shape", "data"), [([0], []), ([2, 0], [[], []]), ([0, 3], []), ([2, 0, 3], [[], []])])
def test_an_empty_tensor_keeps_its_shape(datatype: str, shape: list[int], data: list[Any]) -> None:
    array = decode_tensor(datatype=datatype, shape=shape, data=data)
    assert (array.dtype, array.shape) == (NUMPY_DTYPES[datatype], tuple(shape))


@pytest.mark.parametrize(
    "shape", [[2**62], [2**40, 2**40], [10**9, 10**9, 0], [2**63, 0], [2**62, 2**62, 0], [1] * 65, [1] * 1_000]
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
def test_a_huge_shape_is_refused_without_allocating_it(shape: list[int], datatype: str) -> None:
    data = [] if 0 in shape else EXAMPLES[datatype][:1]
    body = orjson.dumps({"inputs": [tensor(shape=shape, datatype=datatype, data=data)]})
    message = ""
    tracemalloc.start()
    try:
        assert decode_request(body, "m", None, {}).inputs["x"].size == 0
    except InvalidRequest as error:
        message = error.message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1_000_000
    assert not message or message.startswith("inputs[0]")


def test_a_long_string_among_numbers_is_refused_without_allocating_it_for_each_of_them() -> None:
    body = orjson.dumps({"inputs": [tensor(shape=[20_001], data=["x" * 100_000] + [0] * 20_000)]})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"inputs\[0\].data\[0\]: expected FP32, got a string"):
            decode_request(body, "m", None, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def deep(levels: int, leaf: bytes = b"1") -> bytes:
    return b"[" * levels + leaf + b"]" * levels


@pytest.mark.parametrize("field", ["shape", "data", "datatype", "name", "parameters"])
@pytest.mark.parametrize("levels", [100, 1_000])
def test_deep_nesting_in_any_field_is_refused(field: str, levels: int) -> None:
    fields = {"name": b'"x"', "shape": b"[1]", "datatype": b'"FP32"', "data": b"[1]", field: deep(levels)}
    content = b",".join(b'"%s":%s' % (name.encode(), text) for name, text in fields.items())
    with pytest.raises(InvalidRequest, match=field):
        decode_request(b'{"inputs":[{%s}]}' % content, "m", None, {})


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL", "INT64"])
def test_one_deep_element_among_many_does_not_stall_the_server(datatype: str) -> None:
    data = b"[" + deep(900) + b",0" * 100_000 + b"]"
    body = b'{"inputs":[{"name":"x","shape":[100001],"datatype":"%s","data":%s}]}' % (datatype.encode(), data)
    started = time.process_time()
    with pytest.raises(InvalidRequest):
        decode_request(body, "m", None, {})
    assert time.process_time() - started < 1.0


def test_declining_binary_output_is_fine() -> None:
    request = decode(
        {
            "inputs": [tensor()],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
            "parameters": {"binary_data_output": False, "note": 1},
        }
    )
    assert request.outputs == ("y",)
    assert request.forms is None
    assert request.parameters["note"] == 1


def test_no_outputs_asks_for_all() -> None:
    assert decode({"inputs": [tensor()]}).outputs is None
    assert decode({"inputs": [tensor()], "outputs": []}).outputs is None


def test_unknown_keys_are_left_for_later_versions_of_the_protocol() -> None:
    request = decode({"inputs": [tensor(unknown=1)], "unknown": {}, "id": "7"})
    assert request.id == "7"


def test_model_version_and_headers_are_carried_along() -> None:
    headers = {"x-user-id": "u1"}
    request = decode_request(orjson.dumps({"inputs": [tensor()]}), "m", "2", headers)
    assert (request.model, request.version, request.headers) == ("m", "2", headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(json_values, json_values, json_values, st.sampled_from(sorted(NUMPY_DTYPES)) | json_values)
def test_no_json_at_all_raises_anything_but_the_gateways_own_errors(
    outer: Any, shape: Any, data: Any, datatype: Any
) -> None:
    for document in (outer, {"inputs": outer}, {"inputs": [tensor(shape=shape, data=data, datatype=datatype)]}):
        try:
            decode(document)
        except GatewayError as error:
            assert error.status in {400, 501}  # noqa: PT017 -- most documents raise, and one that does not is fine
