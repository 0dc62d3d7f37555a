"""Streams: answers in the order in which they are done, a bound on what is in flight, nothing left behind."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import aio as triton_aio
from tritonclient.grpc import service_pb2 as pb

from gateway.api.grpc.stream import MAX_STREAM_IN_FLIGHT
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.rpc import (
    floats,
    occupied,
    raw_input,
    raw_request,
    serving,
    stub,
    turns_request,
    typed_request,
)
from tests.support.running import GatewayProcess, metric
from tests.support.waiting import wait_until, wait_until_async

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def affine(value: float, request_id: str) -> Any:
    return typed_request("affine", floats(value, value, value), "FP32", id=request_id, model_version="1")


def first_of(message: Any) -> float:
    return float(np.frombuffer(message.infer_response.raw_output_contents[0], np.float32)[0])


class TestClient:
    def test_every_request_of_a_stream_is_answered_by_its_id(self, address: str) -> None:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with InferenceServerClient(address) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for number in range(200):
                tensor = raw_input(floats(number, 0, 0), "FP32")
                client.async_stream_infer(
                    "affine", [tensor], "1", request_id=str(number), enable_empty_final_response=number % 2 == 0
                )
            received = [answers.get(timeout=20.0) for _ in range(200)]
            client.stop_stream()
        assert all(error is None for _, error in received)
        values = {result.get_response().id: result.as_numpy("y")[0, 0] for result, _ in received}
        assert values == {str(number): 2.0 * number + 1 for number in range(200)}
        response = received[0][0].get_response()
        assert response.parameters["triton_final_response"].bool_param
        assert len(response.parameters["prediction_id"].string_param) == 48

    def test_an_error_is_that_of_its_request_and_the_stream_goes_on(self, address: str) -> None:
        async def scenario() -> None:
            async def requests() -> AsyncIterator[dict[str, Any]]:
                for model in ("affine", "nope", "affine"):
                    yield {"model_name": model, "inputs": [raw_input(floats(1, 2, 3), "FP32")]}

            async with triton_aio.InferenceServerClient(address) as client:
                answers = [answer async for answer in client.stream_infer(requests())]
            errors = [error for _, error in answers if error is not None]
            (error,) = errors
            assert "unknown model 'nope'" in error.message()
            assert len(answers) == 3

        asyncio.run(scenario())

    def test_the_error_says_which_request_it_is_about(self, service: Any) -> None:
        bad = raw_request("affine", bytes(3), [1, 3], id="the bad one")
        (answer,) = service.ModelStreamInfer(iter([bad]))
        assert answer.error_message.startswith("inputs[0]: 3 bytes")
        assert answer.infer_response.id == "the bad one"

    def test_a_slow_answer_does_not_hold_up_the_others(self, service: Any) -> None:
        slow = turns_request(20_000)
        slow.id = "slow"
        ids = [answer.infer_response.id for answer in service.ModelStreamInfer(iter([slow, affine(1, "quick")]))]
        assert ids == ["quick", "slow"]

    def test_junk_is_answered_as_an_error_and_the_stream_goes_on(self, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            stream: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            answers = list(stream(iter([b"\xff\xff", affine(1, "sound").SerializeToString()])))
        assert any(b"the message is no inference.ModelInferRequest" in answer for answer in answers)
        assert any(b"sound" in answer for answer in answers)

    @pytest.mark.parametrize("way", ["cancel", "deadline"])
    def test_a_client_that_leaves_takes_all_it_had_in_flight_with_it(
        self, way: str, service: Any, rpc_gateway: GatewayProcess
    ) -> None:
        # A second one would be refused at once, as it could not be answered in time.
        count = 2 if way == "cancel" else 1
        with occupied(service, rpc_gateway, queued=0):
            left = metric(rpc_gateway, "gateway_cancelled_total", model="busy")
            messages: queue.Queue[Any] = queue.Queue()
            for _ in range(count):
                messages.put(turns_request(1))
            # The stream stays open: it does not end by itself.
            stream = service.ModelStreamInfer(iter(messages.get, None), timeout=0.5 if way == "deadline" else None)
            if way == "cancel":
                wait_until(lambda: metric(rpc_gateway, "gateway_queue_rows", model="busy") == count)
                stream.cancel()
            wait_until(lambda: metric(rpc_gateway, "gateway_cancelled_total", model="busy") == left + count)
            assert metric(rpc_gateway, "gateway_queue_rows", model="busy") == 0
            messages.put(None)
        assert "Traceback" not in rpc_gateway.log

    def test_leaving_in_the_middle_of_an_answer_is_no_error_of_the_gateway(
        self, address: str, rpc_gateway: GatewayProcess
    ) -> None:
        async def leave_early(service: Any) -> None:
            stream = service.ModelStreamInfer(affine(number, str(number)) for number in range(200))
            await stream.read()
            stream.cancel()

        async def scenario() -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.gather(*(leave_early(stub(channel)) for _ in range(30)))
                answers = [answer async for answer in stub(channel).ModelStreamInfer(iter([affine(1, "after")]))]
                assert [answer.infer_response.id for answer in answers] == ["after"]

        asyncio.run(scenario())
        assert "Traceback" not in rpc_gateway.log


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("streamed")
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "busy", "1", onnx_models.busy(), toml="[batching]\nmax_batch_rows = 1\n")
    return models


@pytest.fixture
def plane(small: Path, tmp_path: Path) -> Iterator[Plane]:
    with plane_over(small, tmp_path) as made:
        yield made


async def learn_that_busy_is_slow(service: Any) -> None:
    """The first slow run is on the loop, and no other."""
    await service.ModelInfer(turns_request(0))
    await service.ModelInfer(turns_request(5_000))


class TestFlow:
    def test_a_stream_is_read_only_as_far_as_there_is_room(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with serving(plane) as address, grpc.aio.insecure_channel(address) as channel:
                service = stub(channel)
                await learn_that_busy_is_slow(service)
                batcher = plane.registry.get("busy", "1").batcher
                stream = service.ModelStreamInfer()
                await stream.write(turns_request(40_000))
                for _ in range(2 * MAX_STREAM_IN_FLIGHT):
                    await stream.write(turns_request(0))
                # One runs, the others that were read wait in the model's queue, and the rest was not read.
                await wait_until_async(lambda: batcher.queued_rows == MAX_STREAM_IN_FLIGHT - 1)
                assert (await service.ServerLive(pb.ServerLiveRequest())).live
                assert batcher.queued_rows == MAX_STREAM_IN_FLIGHT - 1
                await stream.done_writing()
                answers = [answer async for answer in stream]
                assert len(answers) == 1 + 2 * MAX_STREAM_IN_FLIGHT
                assert not any(answer.error_message for answer in answers)

        run(scenario())

    def test_at_the_end_a_stream_answers_what_it_has_and_says_why_it_ends(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with serving(plane, shutdown_timeout=30.0) as address:
                channel = grpc.aio.insecure_channel(address)
                service = stub(channel)
                await learn_that_busy_is_slow(service)
                stream = service.ModelStreamInfer()
                await stream.write(turns_request(20_000))
                batcher = plane.registry.get("busy", "1").batcher
                await wait_until_async(lambda: batcher._running > 0)
                idle = service.ModelStreamInfer()
                await idle.write(affine(1, "first"))
                assert first_of(await idle.read()) == 3.0
            # The listener has stopped, long before its time was up, although neither stream was ended by its client.
            assert not (await stream.read()).error_message
            for ended in (stream, idle):
                assert await ended.code() is grpc.StatusCode.UNAVAILABLE
                assert "shutting down" in await ended.details()
            await channel.close()

        run(scenario())

    def test_a_deadline_that_cannot_be_met_is_refused_at_once(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with serving(plane) as address, grpc.aio.insecure_channel(address) as channel:
                service = stub(channel)
                await learn_that_busy_is_slow(service)
                batcher = plane.registry.get("busy", "1").batcher
                running = service.ModelInfer(turns_request(20_000))
                await wait_until_async(lambda: batcher._running > 0)
                queued = service.ModelInfer(turns_request(0))
                await wait_until_async(lambda: batcher.queued_rows == 1)
                batcher.queue.expect(0.1)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await service.ModelInfer(turns_request(0), timeout=15.0)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "about 20 s and has 1" in (caught.value.details() or "")
                assert dict(caught.value.trailing_metadata() or ())["retry-after"] in {"5", "6"}
                patient = service.ModelInfer(turns_request(0), timeout=25.0)
                for call in (running, queued, patient):
                    assert (await call).outputs[0].shape == [1, 1]

        run(scenario())

    def test_a_unary_request_in_flight_at_the_end_is_answered(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with serving(plane, shutdown_timeout=30.0) as address:
                channel = grpc.aio.insecure_channel(address)
                service = stub(channel)
                await learn_that_busy_is_slow(service)
                call = service.ModelInfer(turns_request(20_000))
                batcher = plane.registry.get("busy", "1").batcher
                await wait_until_async(lambda: batcher._running > 0)
            assert (await call).outputs[0].shape == [1, 1]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.ModelInfer(turns_request(0))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await channel.close()

        run(scenario())
