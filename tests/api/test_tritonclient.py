"""NVIDIA's own HTTP clients, every datatype each way: they must not notice that this is not Triton.

Hypothesis makes the shapes and values; the answers are compared with ONNX Runtime alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient import http
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import Array, string_array
from tests.support import onnx_models
from tests.support.doors import Doors, doors_beside
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version

DATATYPES = list(NUMPY_DTYPES)
CODINGS = [None, "gzip", "deflate"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Way(NamedTuple):
    """How a request and its answer travel."""

    is_fast: bool
    binary_in: bool
    binary_out: bool | None
    """None leaves the outputs out of the request."""
    coding_in: str | None
    coding_out: str | None


WAYS = st.builds(
    Way,
    st.booleans(),
    st.booleans(),
    st.sampled_from([True, False, None]),
    st.sampled_from(CODINGS),
    st.sampled_from(CODINGS),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for datatype in DATATYPES:
        write_version(folder, f"rows-{datatype}", "1", onnx_models.identity(datatype, ("n", "m")))
        write_version(folder, f"scalar-{datatype}", "1", onnx_models.identity(datatype, ()))
    write_version(folder, "pair", "1", onnx_models.pair())
    write_version(folder, "logarithm", "1", onnx_models.logarithm())
    prediction = {"kind": "classification", "output": "label", "score": "probability", "classes": ["no", "yes"]}
    write_published_version(folder, "classifier", "1", onnx_models.classifier(), prediction=prediction)
    return folder


@pytest.fixture(scope="module")
def doors(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with doors_beside(models, tmp_path_factory.mktemp("gateway")) as opened:
        yield opened


@pytest.fixture(scope="module")
def clients(doors: Doors) -> Iterator[dict[bool, http.InferenceServerClient]]:
    """By whether the door is the fast one."""
    with (
        http.InferenceServerClient(f"127.0.0.1:{doors.fast}") as fast,
        http.InferenceServerClient(f"127.0.0.1:{doors.slow}") as slow,
    ):
        yield {True: fast, False: slow}


def tensor(name: str, datatype: str, array: Array, *, binary: bool) -> http.InferInput:
    made = http.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def infer(client: http.InferenceServerClient, model: str, way: Way, inputs: dict[str, Array], names: list[str]) -> Any:
    tensors = [tensor(name, datatype_of(array), array, binary=way.binary_in) for name, array in inputs.items()]
    outputs = None
    if way.binary_out is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=way.binary_out) for name in names]
    return client.infer(
        model,
        tensors,
        outputs=outputs,
        request_compression_algorithm=way.coding_in,
        response_compression_algorithm=way.coding_out,
    )


def datatype_of(array: Array) -> str:
    return next(name for name, dtype in NUMPY_DTYPES.items() if dtype == array.dtype)


def values(datatype: str, shape: tuple[int, ...], *, finite: bool) -> st.SearchStrategy[Array]:
    if datatype == BYTES:
        size = math.prod(shape)
        return st.lists(TEXTS, min_size=size, max_size=size).map(lambda texts: string_array(texts, shape))
    return st.integers(0, 2**32 - 1).map(lambda seed: any_bits(seed, datatype, shape, finite=finite))


def any_bits(seed: int, datatype: str, shape: tuple[int, ...], *, finite: bool) -> Array:
    """Every value of a datatype is as likely as any other: the extremes, NaN and infinities are among them."""
    dtype = NUMPY_DTYPES[datatype]
    raw = np.random.default_rng(seed).bytes(math.prod(shape) * dtype.itemsize)
    if dtype.kind == "b":
        raw = bytes(byte % 2 for byte in raw)
    array: Array = np.frombuffer(bytearray(raw), dtype)
    if finite and dtype.kind == "f":
        array[~np.isfinite(array)] = 0
    return array.reshape(shape)


def texts(array: Array) -> Array:
    """BYTES come back as bytes when they travel binary."""
    decoded = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
    return string_array(decoded, array.shape)


def alone(models: Path, model: str, inputs: dict[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(models / model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, inputs)]


def check(result: Any, name: str, expected: Array) -> None:
    received = result.as_numpy(name)
    received = texts(received) if expected.dtype == object else received
    assert received.shape == expected.shape
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("datatype", DATATYPES)
@QUICK
@given(data=st.data(), way=WAYS, rows=st.integers(1, 4), columns=st.integers(0, 400))
def test_rows_of_every_datatype_come_back(
    clients: Any, models: Path, datatype: str, data: st.DataObject, way: Way, rows: int, columns: int
) -> None:
    is_json = not way.binary_in or way.binary_out is False
    x = data.draw(values(datatype, (rows, columns), finite=is_json))
    result = infer(clients[way.is_fast], f"rows-{datatype}", way, {"x": x}, ["y"])
    (expected,) = alone(models, f"rows-{datatype}", {"x": x})
    check(result, "y", expected)
    assert ("data" in result.get_output("y")) == (way.binary_out is False)


@pytest.mark.parametrize("datatype", DATATYPES)
@settings(QUICK, max_examples=6)
@given(data=st.data(), way=WAYS)
def test_scalars_of_every_datatype_come_back(
    clients: Any, models: Path, datatype: str, data: st.DataObject, way: Way
) -> None:
    x = np.asarray(data.draw(values(datatype, (), finite=True)))
    result = infer(clients[way.is_fast], f"scalar-{datatype}", way, {"x": x}, ["y"])
    check(result, "y", alone(models, f"scalar-{datatype}", {"x": x})[0])


@QUICK
@given(
    rows=st.integers(1, 3),
    binary_in=st.tuples(st.booleans(), st.booleans()),
    outputs=st.lists(st.tuples(st.sampled_from("cd"), st.booleans()), max_size=2, unique_by=lambda pair: pair[0]),
    is_reversed=st.booleans(),
    is_fast=st.booleans(),
)
def test_json_and_binary_mix_in_one_request_and_outputs_come_as_asked_for(
    clients: Any,
    rows: int,
    binary_in: tuple[bool, bool],
    outputs: list[tuple[str, bool]],
    is_reversed: bool,
    is_fast: bool,
) -> None:
    a, b = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), np.arange(rows, dtype=np.int64) + 2**60
    tensors = [tensor("a", "FP32", a, binary=binary_in[0]), tensor("b", "INT64", b, binary=binary_in[1])]
    requested = [http.InferRequestedOutput(name, binary_data=binary) for name, binary in outputs] or None
    result = clients[is_fast].infer("pair", tensors[::-1] if is_reversed else tensors, outputs=requested)
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ([name for name, _ in outputs] or ["c", "d"])
    for name in names:
        check(result, name, a if name == "c" else b)


@pytest.mark.parametrize("datatype", DATATYPES)
@QUICK
@given(data=st.data(), way=WAYS, rows=st.integers(1, 3), columns=st.integers(0, 400))
def test_the_asyncio_client_is_served_as_well(
    doors: Doors, datatype: str, data: st.DataObject, way: Way, rows: int, columns: int
) -> None:
    x = data.draw(values(datatype, (rows, columns), finite=True))

    async def scenario() -> Any:
        async with aio.InferenceServerClient(f"127.0.0.1:{doors.fast if way.is_fast else doors.slow}") as client:
            return await infer(client, f"rows-{datatype}", way, {"x": x}, ["y"])

    check(asyncio.run(scenario()), "y", x)


@pytest.mark.parametrize("is_fast", [True, False])
class TestAnswers:
    def test_what_json_cannot_hold_goes_binary(self, clients: Any, is_fast: bool) -> None:
        x = tensor("x", "FP32", np.array([[0.0], [-1.0], [1.0]], np.float32), binary=True)
        y = clients[is_fast].infer("logarithm", [x]).as_numpy("y")
        np.testing.assert_array_equal(y, np.array([[-np.inf], [np.nan], [0.0]], np.float32))
        with pytest.raises(InferenceServerException) as caught:
            clients[is_fast].infer("logarithm", [x], outputs=[http.InferRequestedOutput("y", binary_data=False)])
        assert caught.value.message() == (
            "output 'y': data[0] is -inf, which JSON cannot hold; "
            "v2 gives it as binary tensor data (`binary_data_output`)"
        )

    @pytest.mark.parametrize("binary", [True, False])
    def test_classes_come_with_value_index_and_label(self, clients: Any, is_fast: bool, binary: bool) -> None:
        x = tensor("x", "FP32", np.array([[0.0], [2.0]], np.float32), binary=True)
        outputs = [
            http.InferRequestedOutput("probability", binary_data=binary, class_count=5),
            http.InferRequestedOutput("label", binary_data=binary, class_count=1),
        ]
        result = clients[is_fast].infer("classifier", [x], outputs=outputs)
        probability = texts(result.as_numpy("probability"))
        assert probability.tolist() == [
            ["0.500000:0:no", "0.500000:1:yes"],
            ["0.880797:1:yes", "0.119203:0:no"],
        ]
        assert result.get_output("probability")["datatype"] == BYTES
        assert texts(result.as_numpy("label")).tolist() == [["0:0"], ["1:0"]]

    def test_a_request_keeps_its_id(self, clients: Any, is_fast: bool) -> None:
        x = tensor("x", "FP32", np.zeros((1, 1), np.float32), binary=True)
        result = clients[is_fast].infer("classifier", [x], request_id="mine")
        assert result.get_response()["id"] == "mine"

    def test_the_extensions_are_advertised(self, clients: Any, is_fast: bool) -> None:
        extensions = clients[is_fast].get_server_metadata()["extensions"]
        assert {"binary_tensor_data", "classification"} <= set(extensions)

    def test_shared_memory_is_refused_by_name(self, clients: Any, is_fast: bool) -> None:
        x = http.InferInput("x", [1, 1], "FP32")
        x.set_shared_memory("region", 4)
        with pytest.raises(InferenceServerException, match="shared memory is not supported") as caught:
            clients[is_fast].infer("classifier", [x])
        assert caught.value.status() == "501"

    def test_bf16_is_refused_by_name(self, clients: Any, is_fast: bool) -> None:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        x = tensor("x", "BF16", np.zeros((1, 1), ml_dtypes.bfloat16), binary=True)
        with pytest.raises(InferenceServerException, match="input 'x': expected datatype FP32, got BF16"):
            clients[is_fast].infer("classifier", [x])
