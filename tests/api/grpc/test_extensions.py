"""Triton's extensions over gRPC, through the real client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from gateway.serving.inventory import EXTENSIONS, REPOSITORY_EXTENSIONS, Inventory
from gateway.types import JsonObject, ModelKey
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.rpc import floats, raw_input, serving, stub

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_version(folder, "affine", "1", onnx_models.affine())
    write_version(folder, "busy", "1", onnx_models.busy(), "[batching]\nmax_batch_rows = 1\n")
    return folder


@pytest.fixture
def plane(models: Path, tmp_path: Path) -> Iterator[Plane]:
    with plane_over(models, tmp_path) as made:
        yield made


@asynccontextmanager
async def connected(plane: Plane, **options: Any) -> AsyncIterator[Any]:
    """NVIDIA's client of the gRPC port over a plane."""
    async with serving(plane, **options) as address, triton_aio.InferenceServerClient(address) as client:
        yield client


async def refusal(call: Coroutine[Any, Any, Any]) -> tuple[str, str]:
    """Code and message of what the client raises."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


class TestLooking:
    def test_statistics_are_those_of_http(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane) as client:
                await client.infer("affine", [raw_input(np.concatenate([floats(1, 2, 3)] * 4), "FP32")])
                (version,) = (await client.get_inference_statistics("affine", "1")).model_stats
                document = plane.registry.get("affine", "1").statistics.document(ModelKey("affine", "1"), 0.0)
                assert (version.inference_count, version.execution_count) == (4, 1)
                assert version.inference_stats.queue.ns == document["inference_stats"]["queue"]["ns"]
                assert version.batch_stats[0].batch_size == 4
                assert version.batch_stats[0].compute_infer.count == 1
                every = (await client.get_inference_statistics()).model_stats
                assert [stats.name for stats in every] == ["affine", "busy"]
                code, message = await refusal(client.get_inference_statistics("affine", "9"))
                assert (code, message) == ("NOT_FOUND", "unknown version '9' of model 'affine'; versions: 1")

        run(scenario())

    def test_the_configuration_is_that_of_http(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane) as client:
                config = (await client.get_model_config("busy")).config
            assert (config.platform, config.max_batch_size, list(config.input[0].dims)) == ("onnxruntime_onnx", 1, [1])
            policy = config.dynamic_batching.default_queue_policy
            assert policy.default_timeout_microseconds == 30_000_000
            assert config.parameters["max_queue_rows"].string_value

        run(scenario())

    def test_a_bug_is_internal_and_hidden_from_the_client(
        self, plane: Plane, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(_self: Inventory, _model: str, _version: str | None) -> JsonObject:
            raise KeyError("a secret of the implementation")

        monkeypatch.setattr(Inventory, "configuration", broken)

        async def scenario() -> None:
            async with connected(plane) as client:
                code, message = await refusal(client.get_model_config("affine"))
                assert (code, message) == ("INTERNAL", "internal error; the gateway's log says more")

        run(scenario())
        assert "a secret of the implementation" in caplog.text


class TestRepository:
    def test_nvidias_client_loads_and_unloads_where_it_may(self, plane: Plane, models: Path, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane, control_public=True) as client:

                async def states() -> dict[str, str]:
                    index = await client.get_model_repository_index()
                    return {f"{entry.name}/{entry.version}": entry.state for entry in index.models}

                assert tuple((await client.get_server_metadata()).extensions) == EXTENSIONS + REPOSITORY_EXTENSIONS
                write_version(models, "affine", "2", onnx_models.affine(3.0))
                assert await states() == {"affine/1": "READY", "affine/2": "UNAVAILABLE", "busy/1": "READY"}
                await client.load_model("affine")
                result = await client.infer("affine", [raw_input(floats(1, 2, 3), "FP32")])
                assert result.get_response().model_version == "2"
                await client.unload_model("affine", unload_dependents=True)
                assert await states() == {"affine/1": "UNAVAILABLE", "affine/2": "UNAVAILABLE", "busy/1": "READY"}
                code, message = await refusal(client.load_model("absent"))
                assert (code, message.split("/")[0]) == ("NOT_FOUND", "the model repository holds no absent")
                code, message = await refusal(client.load_model("affine", config="{}"))
                assert code == "UNIMPLEMENTED"
                assert "parameters.config" in message

        run(scenario())

    def test_one_version_can_be_named(self, plane: Plane, models: Path, run: Run) -> None:
        write_version(models, "affine", "2", onnx_models.affine(3.0))

        async def scenario() -> None:
            async with (
                serving(plane, control_public=True) as address,
                grpc.aio.insecure_channel(address) as channel,
            ):
                load = pb.RepositoryModelLoadRequest(model_name="affine")
                load.parameters["version"].string_param = "2"
                await stub(channel).RepositoryModelLoad(load)
                assert plane.registry.versions("affine") == ["1", "2"]
                unload = pb.RepositoryModelUnloadRequest(model_name="affine")
                unload.parameters["version"].string_param = "1"
                await stub(channel).RepositoryModelUnload(unload)
                assert plane.registry.versions("affine") == ["2"]

        run(scenario())

    def test_elsewhere_it_may_only_look(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane) as client:
                assert tuple((await client.get_server_metadata()).extensions) == EXTENSIONS
                assert len((await client.get_model_repository_index()).models) == 2
                for call in (client.load_model("affine"), client.unload_model("affine")):
                    code, message = await refusal(call)
                    assert code == "PERMISSION_DENIED"
                    assert "--control-public" in message
            assert plane.registry.versions("affine") == ["1"]

        run(scenario())

    @pytest.mark.parametrize("rpc", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"])
    def test_a_repository_by_name_is_refused_for_there_is_one(self, rpc: str, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with (
                serving(plane, control_public=True) as address,
                grpc.aio.insecure_channel(address) as channel,
            ):
                request = getattr(pb, f"{rpc}Request")(repository_name="other")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(stub(channel), rpc)(request)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert "repository_name" in (caught.value.details() or "")

        run(scenario())


class TestSchedule:
    def test_a_timeout_of_a_requests_own_is_a_deadline(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane) as client:
                turns = np.array([[60_000]], np.int64)
                # The rows of zeros at the start were fast, so the first slow run is still on the event loop.
                await plane.predict("busy", {"turns": turns})
                plane.submit("busy", {"turns": turns})
                hasty = raw_input(np.array([[1]], np.int64), "INT64", "turns")
                code, message = await refusal(client.infer("busy", [hasty], timeout=2_000))
                assert (code, message) == ("DEADLINE_EXCEEDED", "waited 0.002 s in the queue")

        run(scenario())

    def test_a_priority_out_of_range_is_refused(self, plane: Plane, run: Run) -> None:
        async def scenario() -> None:
            async with connected(plane) as client:
                code, message = await refusal(client.infer("affine", [raw_input(floats(1, 2, 3), "FP32")], priority=4))
                assert code == "INVALID_ARGUMENT"
                assert message.startswith("parameters.priority: expected a whole number from 0 (the default) to 3")

        run(scenario())
