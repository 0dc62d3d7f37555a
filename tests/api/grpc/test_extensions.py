"""The extensions' RPCs over use cases of the shape that they ask for, through the real client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from gateway.api.grpc.extensions import Extensions
from gateway.errors import NotFound
from gateway.types import JsonObject
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.rpc import serving, stub

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DURATION = {"count": 3, "ns": 2**40}


class Shelf:
    """All three use cases over names alone; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    async def index(self, *, only_ready: bool) -> list[JsonObject]:
        """Two versions, one of them refused."""
        entries = [
            {"name": "a", "version": "1", "state": "READY", "reason": ""},
            {"name": "a", "version": "2", "state": "UNAVAILABLE", "reason": "sha256 is another"},
        ]
        return entries[:1] if only_ready else entries

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Remember it. Raises `NotFound` for any but `a`."""
        await asyncio.sleep(0)
        self.told.append(("load", model, dict(parameters)))
        if model != "a":
            raise NotFound(f"unknown model {model!r}")

    async def unload(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Remember it."""
        self.told.append(("unload", model, dict(parameters)))

    def statistics(self, model: str | None, version: str | None) -> JsonObject:
        """Of one version, with every kind of member."""
        self.told.append(("statistics", model, version))
        inference = dict.fromkeys(("success", "fail", "queue", "compute_infer"), DURATION)
        batch = {"batch_size": 4, "compute_infer": DURATION}
        return {
            "model_stats": [
                {
                    "name": "a",
                    "version": "1",
                    "inference_count": 12,
                    "inference_stats": inference,
                    "batch_stats": [batch],
                }
            ]
        }

    def configuration(self, model: str, version: str | None) -> JsonObject:
        """As Triton writes it in JSON."""
        self.told.append(("configuration", model, version))
        return {
            "name": model,
            "platform": "onnxruntime_onnx",
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
            "instance_group": [{"name": "a_0", "kind": "KIND_CPU", "count": 1}],
            "parameters": {"limit": {"string_value": "8"}},
        }


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    write_version(tmp_path / "models", "affine", "1", onnx_models.affine())
    with plane_over(tmp_path / "models", tmp_path) as made:
        yield made


def test_each_rpc_asks_its_use_case_and_says_what_it_said(plane: Plane, run: Run) -> None:
    shelf = Shelf()

    async def scenario() -> None:
        async with (
            serving(plane, Extensions(shelf, shelf, shelf)) as address,
            triton_aio.InferenceServerClient(address) as client,
        ):
            metadata = await client.get_server_metadata()
            assert list(metadata.extensions) == ["model_repository", "statistics", "model_configuration"]
            index = await client.get_model_repository_index(as_json=True)
            assert index["models"][1] == {
                "name": "a",
                "version": "2",
                "state": "UNAVAILABLE",
                "reason": "sha256 is another",
            }
            await client.load_model("a", config='{"max_batch_size": 1}', files={"file:1/model.onnx": b"\0\1"})
            await client.unload_model("a", unload_dependents=True)
            statistics = await client.get_inference_statistics("a", "1")
            config = (await client.get_model_config("a")).config
            with pytest.raises(InferenceServerException) as caught:
                await client.load_model("b")
            assert (caught.value.status(), caught.value.message()) == ("StatusCode.NOT_FOUND", "unknown model 'b'")
        (version,) = statistics.model_stats
        assert (version.inference_count, version.inference_stats.queue.ns) == (12, 2**40)
        assert version.batch_stats[0].compute_infer.count == 3
        assert (config.max_batch_size, list(config.input[0].dims)) == (8, [3])
        assert config.parameters["limit"].string_value == "8"

    run(scenario())
    assert shelf.told == [
        ("load", "a", {"config": '{"max_batch_size": 1}', "file:1/model.onnx": b"\0\1"}),
        ("unload", "a", {"unload_dependents": True}),
        ("statistics", "a", "1"),
        ("configuration", "a", None),
        ("load", "b", {}),
    ]


def test_only_what_is_there_is_advertised_and_the_rest_says_that_it_is_not(plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        async with (
            serving(plane, Extensions(statistics=Shelf())) as address,
            triton_aio.InferenceServerClient(address) as client,
        ):
            assert list((await client.get_server_metadata()).extensions) == ["statistics"]
            assert len((await client.get_inference_statistics()).model_stats) == 1
            for call in (client.load_model("a"), client.unload_model("a"), client.get_model_config("a")):
                with pytest.raises(InferenceServerException) as caught:
                    await call
                assert caught.value.status() == "StatusCode.UNIMPLEMENTED"

    run(scenario())


@pytest.mark.parametrize("rpc", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"])
def test_a_repository_by_name_is_refused_for_there_is_one(rpc: str, plane: Plane, run: Run) -> None:
    async def scenario() -> None:
        async with serving(plane, Extensions(Shelf())) as address, grpc.aio.insecure_channel(address) as channel:
            request = getattr(pb, f"{rpc}Request")(repository_name="other")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(stub(channel), rpc)(request)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "repository_name" in (caught.value.details() or "")

    run(scenario())


def test_a_bug_in_a_use_case_is_internal_and_hidden_from_the_client(
    plane: Plane, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Shelf):
        def configuration(self, model: str, version: str | None) -> JsonObject:
            raise KeyError("a secret of the implementation")

    async def scenario() -> None:
        async with (
            serving(plane, Extensions(configuration=Broken())) as address,
            triton_aio.InferenceServerClient(address) as client,
        ):
            with pytest.raises(InferenceServerException) as caught:
                await client.get_model_config("a")
            assert caught.value.status() == "StatusCode.INTERNAL"
            assert caught.value.message() == "internal error; the gateway's log says more"

    run(scenario())
    assert "a secret of the implementation" in caplog.text
