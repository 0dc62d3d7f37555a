"""Both clients against a real gateway: what goes in as an array comes back as the same array."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from gateway.client import (
    Client,
    InferenceError,
    ModelNotFound,
    RequestRefused,
    Result,
    ServerFailed,
    TensorMetadata,
    Unavailable,
)
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.types import Array
from tests.support.asking import Ask, ask_async
from tests.support.running import GatewayProcess, metric

ROW = np.array([[1, 2, 3]], np.float32)


def extremes(datatype: str) -> Array:
    """Two rows with the least and the greatest that the datatype holds."""
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "b":
        return np.array([[False, True], [True, False]])
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype)


@pytest.fixture(params=[True, False], ids=["binary", "json"])
def binary(request: pytest.FixtureRequest) -> bool:
    """How tensors travel."""
    return bool(request.param)


@pytest.fixture
def ask(ask: Ask, binary: bool) -> Ask:
    """Either client, either way."""
    return partial(ask, binary=binary)


def infer(ask: Ask, gateway: GatewayProcess, *arguments: Any, **options: Any) -> Result:
    result: Result = ask(gateway.public_url, lambda client: client.infer(*arguments, **options))
    return result


def failure(ask: Ask, gateway: GatewayProcess, *arguments: Any, **options: Any) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        infer(ask, gateway, *arguments, **options)
    return caught.value


class TestArrays:
    @pytest.mark.parametrize("datatype", NUMPY_DTYPES.keys() - {"BYTES"})
    def test_every_datatype_keeps_dtype_shape_and_values(
        self, gateway: GatewayProcess, ask: Ask, datatype: str
    ) -> None:
        sent = extremes(datatype)
        received = infer(ask, gateway, f"echo-{datatype}", {"x": sent}).outputs["y"]
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        np.testing.assert_array_equal(received, sent)

    @pytest.mark.parametrize("dtype", [object, "U", np.dtypes.StringDType()], ids=["O", "U", "T"])
    def test_strings_come_back_as_objects(self, gateway: GatewayProcess, ask: Ask, dtype: Any) -> None:
        received = infer(ask, gateway, "text", {"x": np.array([["zwölf"], [""]], dtype)}).outputs["y"]
        assert (received.dtype, received.tolist()) == (np.dtype(object), [["zwölf"], [""]])


class TestInfer:
    def test_the_answer_says_who_answered_whom(self, gateway: GatewayProcess, ask: Ask) -> None:
        result = infer(ask, gateway, "affine", {"x": ROW}, version="1", id="seven")
        assert (result.model_name, result.model_version, result.id) == ("affine", "1", "seven")
        assert len(result.prediction_id) == 48
        assert result.outputs["y"].tolist() == [[3, 5, 7]]

    def test_without_a_version_the_route_chooses(self, gateway: GatewayProcess, ask: Ask) -> None:
        assert infer(ask, gateway, "affine", {"x": ROW}).model_version == "2"

    def test_only_the_outputs_that_were_asked_for_come_in_their_order(self, gateway: GatewayProcess, ask: Ask) -> None:
        x = {"x": np.array([[2]], np.float32)}
        assert list(infer(ask, gateway, "classifier", x).outputs) == ["label", "probability"]
        assert list(infer(ask, gateway, "classifier", x, outputs=["probability"]).outputs) == ["probability"]

    def test_many_at_once_through_one_client(self, gateway: GatewayProcess, binary: bool) -> None:
        async def scenario(client: Any) -> list[float]:
            calls = [client.infer("affine", {"x": np.full((1, 3), n, np.float32)}, version="1") for n in range(150)]
            return [float(result.outputs["y"][0, 0]) for result in await asyncio.gather(*calls)]

        assert ask_async(gateway.public_url, scenario, binary=binary) == [2 * n + 1 for n in range(150)]

    def test_a_full_queue_says_when_to_come_back(self, gateway: GatewayProcess, binary: bool) -> None:
        async def scenario(client: Any) -> list[Any]:
            # Each takes some 100 ms, and four may wait.
            calls = [client.infer("busy", {"turns": np.array([[5_000]])}) for _ in range(40)]
            return await asyncio.gather(*calls, return_exceptions=True)

        ends = ask_async(gateway.public_url, scenario, binary=binary, retries=0)
        refused = [end for end in ends if isinstance(end, Unavailable)]
        assert refused
        assert all(error.status == 429 and "queue" in error.message for error in refused)
        assert all(error.retry_after and error.retry_after >= 1.0 for error in refused)
        assert len(refused) + sum(isinstance(end, Result) for end in ends) == 40

    def test_the_gateways_words_reach_the_caller(self, gateway: GatewayProcess, ask: Ask) -> None:
        error = failure(ask, gateway, "affine", {"x": ROW.astype(np.float64)})
        assert (type(error), error.status) == (RequestRefused, 400)
        assert error.message == "input 'x': expected datatype FP32, got FP64"

    @pytest.mark.parametrize(("model", "version"), [("absent", None), ("affine", "9"), ("a b?c=d#ü", None)])
    def test_an_unknown_model_or_version_is_its_own_error(
        self, gateway: GatewayProcess, ask: Ask, model: str, version: str | None
    ) -> None:
        error = failure(ask, gateway, model, {"x": ROW}, version=version)
        assert (type(error), error.status) == (ModelNotFound, 404)
        assert (version or model) in error.message

    def test_a_model_that_fails_is_not_asked_again(self, gateway: GatewayProcess, ask: Ask) -> None:
        before = metric(gateway, "gateway_errors_total", reason="inference_failed")
        error = failure(partial(ask, binary=False), gateway, "logarithm", {"x": np.array([[-1]], np.float32)})
        assert (type(error), error.status) == (ServerFailed, 500)
        assert "JSON cannot hold" in error.message
        assert metric(gateway, "gateway_errors_total", reason="inference_failed") == before + 1

    def test_what_json_cannot_hold_comes_in_binary(self, gateway: GatewayProcess, ask: Ask) -> None:
        sent = np.array([[0], [-1], [1]], np.float32)
        received = infer(partial(ask, binary=True), gateway, "logarithm", {"x": sent}).outputs["y"]
        np.testing.assert_array_equal(received, np.array([[-np.inf], [np.nan], [0]], np.float32))

    @pytest.mark.parametrize("coding", ["gzip", "deflate"])
    def test_a_long_answer_is_compressed_if_headers_ask_for_it(
        self, gateway: GatewayProcess, ask: Ask, coding: str
    ) -> None:
        sent = np.zeros((500, 3), np.float32)
        headers = {"accept-encoding": coding}
        received = infer(ask, gateway, "affine", {"x": sent}, version="1", headers=headers).outputs["y"]
        np.testing.assert_array_equal(received, sent + 1)


class TestTheRest:
    def test_a_label_counts_once(self, gateway: GatewayProcess, ask: Ask) -> None:
        result = infer(ask, gateway, "classifier", {"x": np.array([[2]], np.float32)})
        label = result.outputs["label"][0]
        assert ask(gateway.public_url, lambda client: client.feedback(result.prediction_id, label)) is True
        assert ask(gateway.public_url, lambda client: client.feedback(result.prediction_id, 1)) is False

    def test_a_label_that_cannot_be_is_refused(self, gateway: GatewayProcess, ask: Ask) -> None:
        with pytest.raises(RequestRefused, match="prediction_id"):
            ask(gateway.public_url, lambda client: client.feedback("made up", 1))

    def test_ready_models_and_metadata(self, gateway: GatewayProcess, ask: Ask) -> None:
        assert ask(gateway.public_url, lambda client: client.ready()) is True
        assert (
            ask(gateway.public_url, lambda client: client.models()) == gateway.public.get("/v2/models").json()["models"]
        )
        metadata = ask(gateway.public_url, lambda client: client.metadata("affine"))
        assert (metadata.name, metadata.versions, metadata.platform) == ("affine", ("1", "2"), "onnxruntime_onnx")
        assert metadata.inputs == (TensorMetadata("x", "FP32", (-1, 3)),)
        assert metadata.outputs == (TensorMetadata("y", "FP32", (-1, 3)),)
        assert ask(gateway.public_url, lambda client: client.metadata("affine", "1")).name == "affine"
        with pytest.raises(ModelNotFound):
            ask(gateway.public_url, lambda client: client.metadata("absent"))

    def test_threads_may_share_a_client(self, gateway: GatewayProcess, binary: bool) -> None:
        with Client(gateway.public_url, binary=binary) as client, ThreadPoolExecutor(8) as pool:
            rows = [np.full((1, 3), n, np.float32) for n in range(64)]
            results = pool.map(lambda row: client.infer("affine", {"x": row}, version="1"), rows)
            assert [result.outputs["y"][0, 0] for result in results] == [2 * n + 1 for n in range(64)]
