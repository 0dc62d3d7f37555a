"""The real client, a real gateway and real models: `tritonclient.grpc` must not notice that this is not Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.grpc import aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from gateway import __version__
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.serving.inventory import EXTENSIONS
from gateway.types import Array, string_array
from tests.support.requests import AFFINE
from tests.support.rpc import (
    address_of,
    floats,
    occupied,
    raw_input,
    raw_request,
    refused,
    turns_request,
    typed_request,
)
from tests.support.running import GatewayProcess, metric, running
from tests.support.waiting import wait_until

DATATYPES = list(NUMPY_DTYPES)
FEW = settings(max_examples=20, deadline=None)
PARTS = ["decode", "queue", "batch", "run", "encode"]
CODES = grpc.StatusCode


@pytest.fixture
def client(address: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(address) as made:
        yield made


@pytest.fixture(scope="session")
def run_model(models: Path) -> Callable[[str, Array], Array]:
    """The first output of a model, straight from ONNX Runtime."""
    sessions: dict[str, Any] = {}

    def first_output(model: str, array: Array) -> Array:
        if model not in sessions:
            sessions[model] = onnxruntime.InferenceSession(models / model / "1" / "model.onnx")
        output: Array = sessions[model].run(None, {"x": array})[0]
        return output

    return first_output


def echo(datatype: str) -> str:
    return "text" if datatype == BYTES else f"echo-{datatype}"


@st.composite
def batches(draw: st.DrawFn, datatype: str) -> Array:
    """A few rows as the model that echoes the datatype takes them."""
    rows = draw(st.integers(1, 4))
    if datatype != BYTES:
        return draw(arrays(NUMPY_DTYPES[datatype], (rows, 2)))
    # ONNX Runtime's Python returns what lies before a NUL no differently, but surrogates are no text.
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return string_array(draw(st.lists(texts, min_size=rows, max_size=rows)), (rows, 1))


def texts_of(array: Array) -> list[Any]:
    """What clients return as bytes, as text."""
    return [element.decode() if isinstance(element, bytes) else element for element in array.ravel()]


def assert_same(datatype: str, answered: Array, expected: Array) -> None:
    assert answered.shape == expected.shape
    if datatype == BYTES:
        assert texts_of(answered) == texts_of(expected)
    else:
        assert answered.dtype == expected.dtype
        assert answered.tobytes() == expected.tobytes()


def output_of(message: Any, index: int = 0) -> Array:
    described = message.outputs[index]
    values = np.frombuffer(message.raw_output_contents[index], NUMPY_DTYPES[described.datatype])
    return values.reshape(described.shape)


class TestTensors:
    @pytest.mark.parametrize("datatype", DATATYPES)
    def test_raw_tensors_of_every_datatype_are_answered_as_the_model_answers(
        self, datatype: str, client: InferenceServerClient, run_model: Callable[[str, Array], Array]
    ) -> None:
        @FEW
        @given(array=batches(datatype))
        def check(array: Array) -> None:
            result = client.infer(echo(datatype), [raw_input(array, datatype)])
            assert_same(datatype, result.as_numpy("y"), run_model(echo(datatype), array))

        check()

    @pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype != "FP16"])
    def test_typed_contents_of_every_datatype_that_has_them_get_the_same_answer(
        self, datatype: str, service: Any, client: InferenceServerClient
    ) -> None:
        @FEW
        @given(array=batches(datatype))
        def check(array: Array) -> None:
            typed = service.ModelInfer(typed_request(echo(datatype), array, datatype))
            raw = client.infer(echo(datatype), [raw_input(array, datatype)]).get_response()
            assert typed.raw_output_contents == raw.raw_output_contents
            assert typed.outputs == raw.outputs

        check()

    @FEW
    @given(array=batches("FP32"))
    def test_numbers_that_json_cannot_hold_go_in_and_come_out(
        self, array: Array, address: str, run_model: Callable[[str, Array], Array]
    ) -> None:
        logarithms = np.ascontiguousarray(array[:, :1])
        with InferenceServerClient(address) as client:
            answered = client.infer("logarithm", [raw_input(logarithms, "FP32")]).as_numpy("y")
        np.testing.assert_array_equal(answered, run_model("logarithm", logarithms))

    def test_a_model_without_a_row_axis_is_served(self, client: InferenceServerClient) -> None:
        array = np.array([[1, 2], [3, 4]], np.float32)
        assert client.infer("fixed", [raw_input(array, "FP32")]).as_numpy("y").tolist() == array.tolist()

    def test_bf16_is_no_fp32(self, service: Any) -> None:
        end = refused(lambda: service.ModelInfer(raw_request("affine", bytes(6), [1, 3], "BF16")))
        assert (end.code(), end.details()) == (
            CODES.INVALID_ARGUMENT,
            "input 'x': expected datatype FP32, got BF16",
        )

    def test_requested_outputs_only_in_the_order_asked_for(self, client: InferenceServerClient) -> None:
        inputs = [raw_input(floats(2.0), "FP32")]
        for names in (["probability", "label"], ["label", "probability"], ["probability"]):
            response = client.infer("classifier", inputs, outputs=[InferRequestedOutput(name) for name in names])
            assert [output.name for output in response.get_response().outputs] == names
        everything = client.infer("classifier", inputs)
        assert [output.name for output in everything.get_response().outputs] == ["label", "probability"]
        assert everything.as_numpy("label").tolist() == [1]

    def test_compressed_requests_are_read(self, client: InferenceServerClient) -> None:
        for algorithm in ("gzip", "deflate"):
            result = client.infer("affine", [raw_input(floats(1, 2, 3), "FP32")], compression_algorithm=algorithm)
            assert result.as_numpy("y").shape == (1, 3)


class TestAnswer:
    def test_model_version_and_id_are_those_of_the_request(self, client: InferenceServerClient) -> None:
        inputs = [raw_input(floats(1, 2, 3), "FP32")]
        for version, first in (("1", 3.0), ("2", 4.0), ("", 4.0)):
            result = client.infer("affine", inputs, model_version=version, request_id=f"id {version}")
            response = result.get_response()
            assert (response.model_name, response.model_version) == ("affine", version or "2")
            assert response.id == f"id {version}"
            assert result.as_numpy("y")[0, 0] == first
        assert client.infer("affine", inputs).get_response().id == ""

    def test_the_prediction_id_takes_a_label_and_stands_in_the_metadata_too(
        self, service: Any, rpc_gateway: GatewayProcess
    ) -> None:
        message, call = service.ModelInfer.with_call(typed_request("classifier", floats(2.0), "FP32"))
        prediction_id = message.parameters["prediction_id"].string_param
        assert ("prediction-id", prediction_id) in call.trailing_metadata()
        timing = dict(call.trailing_metadata())["server-timing"]
        assert [part.split(";")[0].strip() for part in timing.split(", ") if ";" in part] == PARTS
        label = {"prediction_id": prediction_id, "label": 1}
        assert rpc_gateway.public.post("/v2/feedback", json=label).json() == {"accepted": True, "duplicate": False}

    def test_unknown_parameters_are_the_clients_own_affair(self, client: InferenceServerClient) -> None:
        inputs = [raw_input(floats(1, 2, 3), "FP32")]
        assert client.infer("affine", inputs, parameters={"colour": "red", "depth": 3}).as_numpy("y") is not None

    def test_metadata_are_the_headers_that_routes_read(self, models: Path, tmp_path: Path) -> None:
        with running(models, tmp_path, "--no-collector", "--grpc-port", "0") as gateway:
            tag = gateway.ops.get("/admin/routes/affine").headers["etag"]
            route = {
                "sticky": {"header": "x-user"},
                "variants": [
                    {"name": "stable", "version": "1", "weight": 100},
                    {"name": "beta", "version": "2", "weight": 0},
                ],
                "match": [{"header": "x-beta", "equals": "yes", "variant": "beta"}],
            }
            assert gateway.ops.put("/admin/routes/affine", json=route, headers={"If-Match": tag}).status_code == 200
            wait_until(lambda: gateway.predict("affine", AFFINE).json()["model_version"] == "1")
            with InferenceServerClient(address_of(gateway)) as client:
                inputs = [raw_input(floats(1, 2, 3), "FP32")]
                for headers, version in (({"x-beta": "yes"}, "2"), ({"x-beta": "no"}, "1"), ({}, "1")):
                    result = client.infer("affine", inputs, headers=headers)
                    assert result.get_response().model_version == version

    def test_the_asyncio_client_is_served_as_well(self, address: str) -> None:
        async def scenario() -> None:
            async with triton_aio.InferenceServerClient(address) as client:
                assert await client.is_server_ready()
                results = await asyncio.gather(
                    *(client.infer("affine", [raw_input(floats(i, i, i), "FP32")], "1") for i in range(50))
                )
                assert [result.as_numpy("y")[0, 0] for result in results] == [2.0 * i + 1 for i in range(50)]

        asyncio.run(scenario())


class TestRefusals:
    @pytest.mark.parametrize(
        ("message", "code", "details"),
        [
            (raw_request("nope", bytes(4), [1]), CODES.NOT_FOUND, "unknown model 'nope'"),
            (raw_request("affine", bytes(12), [1, 3], model_version="9"), CODES.NOT_FOUND, "unknown version '9'"),
            (pb.ModelInferRequest(model_name="affine"), CODES.INVALID_ARGUMENT, "missing input 'x'"),
            (raw_request("affine", bytes(12), [1, 3], name="z"), CODES.INVALID_ARGUMENT, "unknown input 'z'"),
            (raw_request("affine", bytes(8), [1, 2]), CODES.INVALID_ARGUMENT, "expected shape [-1, 3]"),
            (raw_request("affine", bytes(0), [0, 3]), CODES.INVALID_ARGUMENT, "the batch is empty"),
            (raw_request("affine", bytes(24), [1, 3], "FP64"), CODES.INVALID_ARGUMENT, "expected datatype FP32"),
            (raw_request("affine", bytes(11), [1, 3]), CODES.INVALID_ARGUMENT, "inputs[0]: 11 bytes do not fill"),
            (
                raw_request("affine", bytes(12), [1, 3], outputs=[{"name": "z"}]),
                CODES.INVALID_ARGUMENT,
                "unknown output 'z'",
            ),
            (
                raw_request("lookup", np.int64(9).tobytes(), [1], "INT64", "index"),
                CODES.INVALID_ARGUMENT,
                "the model refuses these values",
            ),
        ],
    )
    def test_what_is_wrong_is_said_and_counted(
        self, message: Any, code: Any, details: str, service: Any, rpc_gateway: GatewayProcess
    ) -> None:
        reason = "not_found" if code is CODES.NOT_FOUND else "invalid_request"
        model = "" if message.model_name == "nope" else message.model_name
        before = metric(rpc_gateway, "gateway_errors_total", model=model, reason=reason)
        end = refused(lambda: service.ModelInfer(message))
        assert end.code() is code
        assert details in (end.details() or "")
        assert metric(rpc_gateway, "gateway_errors_total", model=model, reason=reason) == before + 1

    def test_a_neighbour_with_bad_values_costs_only_itself(self, address: str) -> None:
        async def scenario() -> None:
            async with triton_aio.InferenceServerClient(address) as client:
                indices = [np.array([value], np.int64) for value in (0, 1, 9, 2, 3)]
                results = await asyncio.gather(
                    *(client.infer("lookup", [raw_input(index, "INT64", "index")]) for index in indices),
                    return_exceptions=True,
                )
            assert isinstance(results.pop(2), InferenceServerException)
            answers: list[Any] = list(results)
            assert [result.as_numpy("y")[0, 0] for result in answers] == [0.0, 2.0, 4.0, 6.0]

        asyncio.run(scenario())

    @pytest.mark.parametrize("content", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x2a\x05a"])
    def test_bytes_that_are_no_message_are_the_clients_mistake(self, content: bytes, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            end = refused(lambda: infer(content))
        assert end.code() is CODES.INVALID_ARGUMENT
        assert "the message is no inference.ModelInferRequest" in (end.details() or "")

    @pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
    @pytest.mark.parametrize("size", [70_000, 30_000_000])
    def test_messages_beyond_max_body_bytes_are_refused_also_if_only_unpacked_they_are(
        self, compression: grpc.Compression, size: int, service: Any
    ) -> None:
        message = raw_request("affine", bytes(size), [size // 12, 3])
        end = refused(lambda: service.ModelInfer(message, compression=compression))
        assert end.code() is CODES.RESOURCE_EXHAUSTED

    def test_an_error_about_a_huge_name_still_arrives(self, service: Any) -> None:
        end = refused(lambda: service.ModelInfer(raw_request("é" * 20_000, bytes(4), [1])))
        assert end.code() is CODES.NOT_FOUND

    def test_what_is_not_implemented_says_so(self, client: InferenceServerClient) -> None:
        for call, reason in (
            (client.get_system_shared_memory_status, "shared memory is not supported"),
            (client.get_trace_settings, "TraceSetting is not supported"),
            (client.get_log_settings, "LogSettings is not supported"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
            assert reason in caught.value.message()


class TestMetadata:
    def test_of_the_server(self, client: InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        metadata = client.get_server_metadata(as_json=True)
        assert metadata == {"name": "model-gateway", "version": __version__, "extensions": list(EXTENSIONS)}

    def test_of_a_model_are_those_of_http(self, client: InferenceServerClient, rpc_gateway: GatewayProcess) -> None:
        for path, arguments in (("affine", ("affine",)), ("classifier/versions/1", ("classifier", "1"))):
            over_http = rpc_gateway.public.get(f"/v2/models/{path}").json()
            message = client.get_model_metadata(*arguments)
            assert (message.name, list(message.versions), message.platform) == (
                over_http["name"],
                over_http["versions"],
                over_http["platform"],
            )
            for side in ("inputs", "outputs"):
                described = [
                    {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
                    for tensor in getattr(message, side)
                ]
                assert described == over_http[side]
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata("nope")
        assert caught.value.status() == "StatusCode.NOT_FOUND"

    def test_a_model_is_ready_if_it_takes_requests(self, client: InferenceServerClient) -> None:
        assert client.is_model_ready("affine")
        assert client.is_model_ready("affine", "1")
        assert not client.is_model_ready("affine", "9")
        assert not client.is_model_ready("nope")


class TestPressure:
    """The model `busy` runs one row at a time and queues four."""

    def test_a_full_queue_is_resource_exhausted_and_says_when_to_come_again(
        self, service: Any, rpc_gateway: GatewayProcess
    ) -> None:
        with occupied(service, rpc_gateway):
            calls = [service.ModelInfer.future(turns_request(1)) for _ in range(10)]
            ends = [call.exception() for call in calls]
        refusals = [end for end in ends if end is not None]
        assert len(refusals) == 10 - 3
        for end in refusals:
            assert end.code() is CODES.RESOURCE_EXHAUSTED
            assert "takes at most 4" in end.details()
            assert int(dict(end.trailing_metadata())["retry-after"]) >= 1

    @pytest.mark.parametrize("way", ["cancel", "deadline"])
    def test_who_leaves_is_counted_and_not_run(self, way: str, service: Any, rpc_gateway: GatewayProcess) -> None:
        with occupied(service, rpc_gateway, queued=0):
            left = metric(rpc_gateway, "gateway_cancelled_total", model="busy")
            rows = metric(rpc_gateway, "gateway_rows_total", model="busy")
            leaver = service.ModelInfer.future(turns_request(1, rows=3), timeout=0.5 if way == "deadline" else None)
            if way == "cancel":
                wait_until(lambda: metric(rpc_gateway, "gateway_queue_rows", model="busy") == 3)
                leaver.cancel()
            wait_until(lambda: metric(rpc_gateway, "gateway_cancelled_total", model="busy") == left + 1)
            assert leaver.code() is (CODES.CANCELLED if way == "cancel" else CODES.DEADLINE_EXCEEDED)
            assert metric(rpc_gateway, "gateway_queue_rows", model="busy") == 0
        assert metric(rpc_gateway, "gateway_rows_total", model="busy") == rows + 1
        assert "Traceback" not in rpc_gateway.log
