"""Binary tensors over a real connection, against a server that reads and writes them by the contract, on its own."""

from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.client import Client, Result, ServerFailed
from gateway.types import Array
from tests.support.asking import Ask
from tests.support.scripted_server import Received, Reply, ScriptedServer

SIZES = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("INT16", "UINT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("INT32", "UINT32", "FP32"), 4),
    **dict.fromkeys(("INT64", "UINT64", "FP64"), 8),
}
"""Bytes of an element."""


def echo(received: Received) -> Reply:
    """Every input as an output of the same name, binary if the request says so; 400 for what the contract forbids."""
    problem, outputs = read(received)
    if problem:
        return Reply(400, json.dumps({"error": problem}).encode())
    head = json.dumps(
        {"model_name": "echo", "model_version": "1", "outputs": [tensor for tensor, _ in outputs]}
    ).encode()
    raw = b"".join(data for _, data in outputs)
    headers = {"Prediction-Id": "p"}
    if raw:
        headers["Inference-Header-Content-Length"] = str(len(head))
    return Reply(200, head + raw, headers)


def read(received: Received) -> tuple[str, list[tuple[dict[str, Any], bytes]]]:
    """What is wrong with the request, and its tensors with their bytes."""
    length = int(received.headers["inference-header-content-length"])
    document, rest = json.loads(received.body[:length]), received.body[length:]
    if received.headers["content-type"] != "application/octet-stream":
        return "content type", []
    if document["parameters"] != {"binary_data_output": True}:
        return "the outputs are not asked for in binary", []
    tensors = []
    for tensor in document["inputs"]:
        if "data" in tensor:
            return f"{tensor['name']} is JSON", []
        size = tensor["parameters"]["binary_data_size"]
        data, rest = rest[:size], rest[size:]
        if elements(tensor["datatype"], data) != int(np.prod(tensor["shape"])):
            return f"{tensor['name']}: {size} bytes for {tensor['shape']}", []
        tensors.append((tensor, data))
    return f"{len(rest)} bytes left over" if rest else "", tensors


def elements(datatype: str, data: bytes) -> float:
    """How many elements the bytes hold."""
    if datatype != "BYTES":
        return len(data) / SIZES[datatype]
    count = 0
    while data:
        (length,) = struct.unpack("<I", data[:4])
        assert len(data) >= 4 + length
        data = data[4 + length :]
        count += 1
    return count


@pytest.fixture(scope="module")
def url() -> Any:
    """Of the echoing server."""
    with ScriptedServer(echo).running() as server:
        yield server.url


def same(ask: Ask, url: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """What the arrays come back as."""
    result: Result = ask(url, lambda client: client.infer("echo", arrays))
    assert result.prediction_id == "p"
    return result.outputs


DTYPES = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="=")
    | hnp.unsigned_integer_dtypes(endianness="=")
    | hnp.floating_dtypes(sizes=(16, 32, 64), endianness="=")
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@given(st.dictionaries(st.text(max_size=5), DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)), min_size=1))
@settings(max_examples=50, deadline=None)
def test_arrays_of_every_dtype_and_shape_come_back_bit_for_bit(url: str, arrays: dict[str, Array]) -> None:
    with Client(url) as client:
        outputs = client.infer("echo", arrays).outputs
    assert list(outputs) == list(arrays)
    for name, sent in arrays.items():
        assert (outputs[name].dtype, outputs[name].shape) == (sent.dtype, sent.shape)
        assert outputs[name].tobytes() == sent.tobytes()


def test_strings_and_floats_that_json_cannot_hold(url: str, ask: Ask) -> None:
    texts = np.array([["zwölf", ""], ["𝄞", "a\nb"]])
    numbers = np.array([np.nan, np.inf, -np.inf], np.float32)
    outputs = same(ask, url, {"texts": texts, "numbers": numbers})
    assert (outputs["texts"].dtype, outputs["texts"].tolist()) == (np.dtype(object), texts.tolist())
    np.testing.assert_array_equal(outputs["numbers"], numbers)


def test_bfloat16_comes_back_as_float32(url: str, ask: Ask) -> None:
    sent = np.array([[1.0, -2.5], [np.inf, 3e38]], ml_dtypes.bfloat16)
    (received,) = same(ask, url, {"x": sent}).values()
    assert received.dtype == np.float32
    np.testing.assert_array_equal(received, sent.astype(np.float32))


def test_several_megabytes(url: str, ask: Ask) -> None:
    sent = np.random.default_rng(1).normal(size=(4, 150_528)).astype(np.float32)
    np.testing.assert_array_equal(same(ask, url, {"x": sent})["x"], sent)


def test_json_is_not_tried_where_binary_is_refused(ask: Ask) -> None:
    refused = Reply(501, b'{"error":"binary tensor data is not supported"}')
    with ScriptedServer(lambda _received: refused).running() as server, pytest.raises(ServerFailed) as caught:
        ask(server.url, lambda client: client.infer("m", {"x": np.zeros(1)}))
    assert str(caught.value) == "binary tensor data is not supported"
    assert len(server.received) == 1
