"""Arrays to request bodies and answers to arrays, byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import orjson
import pytest

from gateway.client.codec import Result, decode_response, encode_request
from gateway.client.errors import InvalidResponse
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.types import Array

HEADER = "inference-header-content-length"


def document_of(array: Array, *, binary: bool = False) -> tuple[dict[str, Any], bytes]:
    """The one input as it is sent, and the bytes behind the JSON."""
    body = encode_request({"x": array}, None, None, binary=binary)
    length = int(body.headers.get(HEADER, len(body.content)))
    return orjson.loads(body.content[:length])["inputs"][0], body.content[length:]


def refusal(array: Any, *, binary: bool = False) -> str:
    with pytest.raises(ValueError, match="x") as caught:
        encode_request({"x": array}, None, None, binary=binary)
    return str(caught.value)


class TestRequest:
    def test_the_contracts_worked_example(self) -> None:
        body = encode_request({"x": np.array([[1, 2]], np.float32)}, None, None, binary=True)
        head = (
            b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
            b'"parameters":{"binary_data_output":true}}'
        )
        assert body.content == head + struct.pack("<2f", 1, 2)
        assert body.headers == {"content-type": "application/octet-stream", HEADER: "134"}

    def test_json(self) -> None:
        arrays = {"x": np.array([[1, 2]], np.int16), "y": np.array(True)}
        body = encode_request(arrays, ["b", "a"], "seven", binary=False)
        assert body.headers == {"content-type": "application/json"}
        assert orjson.loads(body.content) == {
            "id": "seven",
            "inputs": [
                {"name": "x", "shape": [1, 2], "datatype": "INT16", "data": [1, 2]},
                {"name": "y", "shape": [], "datatype": "BOOL", "data": [True]},
            ],
            "outputs": [{"name": "b"}, {"name": "a"}],
        }

    @pytest.mark.parametrize("binary", [False, True])
    @pytest.mark.parametrize(
        ("array", "values"),
        [
            (np.arange(4, dtype=np.int32).reshape(2, 2).T, [0, 2, 1, 3]),
            (np.arange(8, dtype=np.int32)[::2].reshape(2, 2), [0, 2, 4, 6]),
            (np.arange(4, dtype=">i4").reshape(2, 2), [0, 1, 2, 3]),
        ],
        ids=["transposed", "strided", "big-endian"],
    )
    def test_values_go_row_major_and_little_endian(self, array: Array, values: list[int], binary: bool) -> None:
        tensor, raw = document_of(array, binary=binary)
        assert (tensor["datatype"], tensor["shape"]) == ("INT32", [2, 2])
        assert (list(struct.unpack("<4i", raw)) if binary else tensor["data"]) == values

    @pytest.mark.parametrize(
        "array",
        [
            np.array(["a", "zwölf"]),
            np.array(["a", "zwölf"], object),
            np.array([b"a", "zwölf".encode()]),
            np.array([b"a", "zwölf"], object),
            np.array(["a", "zwölf"], np.dtypes.StringDType()),
        ],
        ids=["U", "O", "S", "bytes in O", "T"],
    )
    def test_strings_of_every_kind_are_bytes_tensors(self, array: Array) -> None:
        tensor, _ = document_of(array)
        assert tensor == {"name": "x", "shape": [2], "datatype": "BYTES", "data": ["a", "zwölf"]}
        tensor, raw = document_of(array, binary=True)
        assert raw == b"\x01\0\0\0a\x06\0\0\0zw\xc3\xb6lf"
        assert tensor["parameters"] == {"binary_data_size": len(raw)}

    def test_bfloat16_goes_binary(self) -> None:
        array = np.array([[1.0, 7.0], [-2.5, 7.0]], ml_dtypes.bfloat16)
        tensor, raw = document_of(array[:, 0], binary=True)
        assert (tensor["datatype"], tensor["shape"], raw) == ("BF16", [2], b"\x80\x3f\x20\xc0")
        assert "send it binary" in refusal(np.array([1.0], ml_dtypes.bfloat16))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_what_json_cannot_hold_is_refused_by_position_and_goes_binary(self, dtype: Any, value: float) -> None:
        array = np.array([[0, 1], [value, 3]], dtype)
        assert refusal(array) == f"input 'x': element 2 is {value}, which JSON cannot hold; send it binary"
        assert np.frombuffer(document_of(array, binary=True)[1], dtype).tolist()[3] == 3

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            ([1.0], "expected a numpy array, got list"),
            (np.float32(1), "expected a numpy array, got float32"),
            (np.array([1j]), "no datatype for complex128; expected one of bool, int8"),
            (np.array(["2026-11-24"], "M8[D]"), "no datatype for datetime64[D]"),
            (np.array(["a", 1], object), "element 1: expected a string, got 1"),
            (np.array([b"\xff"]), "element 0 is not UTF-8"),
        ],
    )
    @pytest.mark.parametrize("binary", [False, True])
    def test_what_the_protocol_has_no_place_for_is_refused(self, array: Any, words: str, binary: bool) -> None:
        assert words in refusal(array, binary=binary)

    @pytest.mark.parametrize("binary", [False, True])
    def test_half_a_surrogate_is_refused(self, binary: bool) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            encode_request({"x": np.array(["\ud800"])}, None, None, binary=binary)


def answer(document: Any, headers: dict[str, str], raw: bytes = b"") -> httpx.Response:
    content = orjson.dumps(document)
    if raw:
        headers = {HEADER: str(len(content)), **headers}
    request = httpx.Request("POST", "http://gateway/v2/models/m/infer")
    return httpx.Response(200, headers=headers, content=content + raw, request=request)


def output(**changes: Any) -> dict[str, Any]:
    return {"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2], **changes}


def raw_output(size: Any, **changes: Any) -> dict[str, Any]:
    tensor = output(parameters={"binary_data_size": size}, **changes)
    del tensor["data"]
    return tensor


def result(*outputs: Any, raw: bytes = b"", **headers: str) -> Result:
    return decode_response(answer({"model_name": "m", "outputs": list(outputs)}, headers, raw))


class TestAnswer:
    def test_everything_an_answer_says(self) -> None:
        document = {"model_name": "m", "model_version": "3", "id": "seven", "outputs": [output()]}
        read = decode_response(answer(document, {"Prediction-Id": "abc"}))
        assert (read.model_name, read.model_version, read.id, read.prediction_id) == ("m", "3", "seven", "abc")
        assert read.outputs["y"].tolist() == [1, 2]

    def test_what_only_our_gateway_says_may_be_missing(self) -> None:
        read = result(output())
        assert (read.model_version, read.id, read.prediction_id) == ("", None, "")

    @pytest.mark.parametrize("datatype", NUMPY_DTYPES.keys() - {"BYTES"})
    def test_binary_outputs_have_their_dtype_and_belong_to_the_caller(self, datatype: str) -> None:
        values = np.array([[0, 1], [1, 0]], NUMPY_DTYPES[datatype])
        raw = b"?" + values.tobytes()
        read = result(
            raw_output(1, name="first", shape=[1], datatype="UINT8"),
            raw_output(len(raw) - 1, shape=[2, 2], datatype=datatype),
            raw=raw,
        )
        array = read.outputs["y"]
        assert (array.dtype, array.tolist()) == (values.dtype, values.tolist())
        assert array.flags.aligned
        array[0, 0] = 1
        assert array[0, 0] == 1

    def test_json_and_binary_may_be_mixed(self) -> None:
        read = result(
            raw_output(4, name="a", shape=[1]),
            output(name="b"),
            raw_output(7, name="c", shape=[1], datatype="BYTES"),
            raw=struct.pack("<fI", 7, 3) + b"abc",
        )
        assert {name: array.tolist() for name, array in read.outputs.items()} == {"a": [7], "b": [1, 2], "c": ["abc"]}

    def test_bf16_comes_as_float32(self) -> None:
        array = result(raw_output(4, datatype="BF16"), raw=b"\x80\x3f\x20\xc0").outputs["y"]
        assert (array.dtype, array.tolist()) == (np.dtype(np.float32), [1.0, -2.5])

    @pytest.mark.parametrize(("datatype", "raw"), [("BF16", b"\x80\x3f"), ("FP32", b"\0\0\x80\x3f"), ("UINT8", b"\1")])
    def test_a_number_without_dimensions_is_still_an_array(self, datatype: str, raw: bytes) -> None:
        array = result(raw_output(len(raw), shape=[], datatype=datatype), raw=raw).outputs["y"]
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.tolist()) == ((), 1)

    def test_outputs_without_elements_need_no_header(self) -> None:
        array = result(raw_output(0, shape=[0, 3], datatype="INT64")).outputs["y"]
        assert (array.dtype, array.shape) == (np.dtype(np.int64), (0, 3))

    @pytest.mark.parametrize(
        ("outputs", "raw", "words"),
        [
            ([output(data=[1])], b"", r"outputs\[0\].data: 1 values do not fill shape \[2\]"),
            ([output(data=[1, None])], b"", r"outputs\[0\].data\[1\]: expected FP32, got null"),
            ([output(datatype="FP8")], b"", r"outputs\[0\].datatype"),
            ([output(name=1)], b"", "name: expected a string, got 1"),
            (["y"], b"", "outputs: expected a list of tensors"),
            ([raw_output(8)], b"1234567", r"outputs\[0\]: 8 bytes of binary data, of which 7 came"),
            ([raw_output(8)], b"123456789", "1 bytes too many after the last tensor"),
            ([raw_output(-8)], b"12345678", r"outputs\[0\]: -8 bytes of binary data"),
            ([raw_output("8")], b"12345678", r"outputs\[0\]: '8' bytes of binary data"),
            ([raw_output(8, shape=[3])], b"12345678", r"outputs\[0\]"),
            ([raw_output(8, shape=[-1])], b"12345678", r"outputs\[0\].shape"),
            ([raw_output(8, datatype="FP8")], b"12345678", r"outputs\[0\]"),
        ],
    )
    def test_what_does_not_follow_the_protocol_is_refused_by_name(
        self, outputs: list[Any], raw: bytes, words: str
    ) -> None:
        with pytest.raises(InvalidResponse, match=words) as caught:
            result(*outputs, raw=raw)
        assert caught.value.status == 200

    @pytest.mark.parametrize("length", ["9999", "-1", "x", ""])
    def test_a_false_length_of_the_json_is_refused(self, length: str) -> None:
        with pytest.raises(InvalidResponse, match=HEADER):
            result(output(), raw=b"1", **{HEADER: length})

    @pytest.mark.parametrize("content", [b"", b"[]", b"<html>", b'{"outputs": []}'])
    def test_anything_else_is_no_answer(self, content: bytes) -> None:
        request = httpx.Request("POST", "http://gateway/v2/models/m/infer")
        with pytest.raises(InvalidResponse, match="does not follow the protocol"):
            decode_response(httpx.Response(200, content=content, request=request))
