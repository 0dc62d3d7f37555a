"""Loading while requests come: nobody else notices, and a mistake changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import InvalidRequest, NotFound
from gateway.serving.model_control import NOT_LOADED, ModelControl
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.control import ROW, GatedLoader, Run, answered_by, more_than, states
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_of
from tests.support.waiting import wait_until_async


def test_a_new_version_serves_when_the_call_returns(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        assert await answered_by(plane) == "1"
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        write_version(repository, "m", "10", onnx_models.affine(3.0))
        assert await plane.control.load("m") == ["1", "2", "10"]
        # Nobody wrote a route, so the highest version takes everything.
        assert await answered_by(plane) == "10"
        assert [await answered_by(plane, version) for version in ("1", "2", "10")] == ["1", "2", "10"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_a_new_model_serves_with_a_route_of_its_own(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        write_published_version(repository, "late", "3", onnx_models.classifier())
        with pytest.raises(NotFound):
            await plane.predict("late", {"x": np.ones((1, 1), np.float32)})
        assert await plane.control.load("late") == ["3"]
        response = await plane.predict("late", {"x": np.ones((1, 1), np.float32)})
        assert plane.signer.verify(response.prediction_id).class_index == 1
        route = plane.routes.get("late")
        assert route is not None
        assert (route.revision, route.variants[0].version) == (0, "3")

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_one_version_can_be_named(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        write_version(repository, "m", "3", b"no model")
        assert await plane.control.load("m", "2") == ["1", "2"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_loading_what_is_loaded_changes_nothing(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        before = plane.registry.get("m", "1")
        assert await plane.control.load("m") == await plane.control.load("m", "1") == ["1"]
        assert plane.registry.get("m", "1") is before

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_a_broken_version_leaves_everything_as_it_was_and_is_named(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        before = list(plane.registry)
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        folder = write_published_version(repository, "m", "3", onnx_models.affine(3.0))
        (folder / "model.onnx").write_bytes(onnx_models.affine(4.0))
        with pytest.raises(InvalidRequest, match=r"(?s)nothing was loaded, .*m/3/model\.onnx: sha256 is"):
            await plane.control.load("m")
        assert list(plane.registry) == before
        assert plane.registry.refused == {}
        assert await answered_by(plane) == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))


@pytest.mark.parametrize(
    ("version", "content", "toml", "reason"),
    [
        ("2", b"no model", "", "m/2/model.onnx: ONNX Runtime cannot load it"),
        ("v2", onnx_models.affine(), "", "m/v2: a version is a whole number"),
        ("2", onnx_models.affine(), "[batching]\nmax_rows = 1\n", "model.toml: batching.max_rows"),
    ],
)
def test_what_is_wrong_with_it_is_said(
    repository: Path, run: Run, version: str, content: bytes, toml: str, reason: str
) -> None:
    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", version, content, toml)
        with pytest.raises(InvalidRequest) as caught:
            await plane.control.load("m")
        assert reason in caught.value.message
        assert (await states(plane))["m/1"][0] == "READY"
        assert await answered_by(plane) == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))


@pytest.mark.parametrize(("name", "version"), [("absent", None), ("m", "9"), ("..", None), ("", None)])
def test_what_the_repository_does_not_hold_is_not_found(
    repository: Path, run: Run, name: str, version: str | None
) -> None:
    with plane_of(repository) as plane, pytest.raises(NotFound, match="the model repository holds no "):
        run(plane.control.load(name, version))


def test_a_version_refused_at_the_start_can_be_mended(repository: Path, run: Run) -> None:
    folder = write_version(repository, "broken", "1", b"no model")

    async def scenario(plane: Plane) -> None:
        with pytest.raises(InvalidRequest):
            await plane.control.load("broken")
        assert plane.registry.refused.keys() == {ModelKey("broken", "1")}
        (folder / "model.onnx").write_bytes(onnx_models.affine())
        assert await plane.control.load("broken") == ["1"]
        assert plane.registry.refused == {}
        assert await answered_by(plane, name="broken") == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_the_loop_goes_on_while_a_version_loads(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        loader = GatedLoader("cpu", 1, plane.loader.executor, plane.loader.scheduler, 30.0, plane.plane.finish)
        control = ModelControl(repository, loader, plane.plane, plane.routes, plane.metrics)
        loading = asyncio.create_task(control.load("m"))
        await wait_until_async(loader.started.is_set)
        assert [await answered_by(plane) for _ in range(5)] == ["1"] * 5
        with pytest.raises(NotFound):
            await answered_by(plane, "2")
        # A second operator waits for the first, and finds nothing left to do.
        second = asyncio.create_task(control.load("m"))
        unloading = asyncio.create_task(control.unload("m", "1"))
        await asyncio.sleep(0)
        assert not second.done()
        loader.gate.set()
        assert await loading == await second == ["1", "2"]
        assert await unloading == ["2"]
        assert await answered_by(plane) == "2"

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_every_version_on_disk_or_loaded_is_told_with_its_state(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", b"no model")

    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", "10", onnx_models.affine())
        write_version(repository, "m", "x", onnx_models.affine())
        write_version(repository, "new", "1", b"")
        (repository / "other" / "1" / "model.onnx").unlink()
        index = await states(plane)
        assert list(index) == ["m/1", "m/2", "m/x", "m/10", "new/1", "other/1"]
        assert index["m/1"] == index["other/1"] == ("READY", "")
        assert index["m/10"] == index["new/1"] == ("UNAVAILABLE", NOT_LOADED)
        assert index["m/2"][0] == index["m/x"][0] == "UNAVAILABLE"
        assert "ONNX Runtime cannot load it" in index["m/2"][1]
        assert "a version is a whole number" in index["m/x"][1]
        assert await states(plane, only_ready=True) == {"m/1": ("READY", ""), "other/1": ("READY", "")}

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_a_load_goes_on_when_whoever_asked_for_it_has_left(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        loader = GatedLoader("cpu", 1, plane.loader.executor, plane.loader.scheduler, 30.0, plane.plane.finish)
        control = ModelControl(repository, loader, plane.plane, plane.routes, plane.metrics)
        loading = asyncio.create_task(control.load("m"))
        await wait_until_async(loader.started.is_set)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        unloading = asyncio.create_task(control.unload("m", "1"))
        loader.gate.set()
        assert await unloading == ["2"]
        assert await answered_by(plane) == "2"

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_loads_and_unloads_under_traffic_cost_nobody_else_an_answer(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0))

    async def scenario(plane: Plane) -> None:
        counts = {"other": 0, "m/1": 0, "m": 0, "m/2": 0}
        stop = False

        async def hammer(name: str, version: str | None, label: str) -> None:
            while not stop:
                answer = await plane.predict(name, ROW, version)
                assert version in {None, answer.key.version}
                counts[label] += 1

        async def hammer_the_coming_and_going() -> None:
            while not stop:
                try:
                    assert await answered_by(plane, "2") == "2"
                    counts["m/2"] += 1
                except NotFound:
                    await asyncio.sleep(0)

        traffic = [
            asyncio.create_task(coroutine)
            for coroutine in (
                *(hammer("other", None, "other") for _ in range(3)),
                *(hammer("m", "1", "m/1") for _ in range(3)),
                # By the default route, which follows every change.
                *(hammer("m", None, "m") for _ in range(3)),
                hammer_the_coming_and_going(),
            )
        ]
        for _ in range(20):
            assert await plane.control.unload("m", "2") == ["1"]
            assert await plane.control.load("m") == ["1", "2"]
            await more_than(counts, dict(counts))
        stop = True
        await asyncio.gather(*traffic)

    with plane_of(repository) as plane:
        run(scenario(plane))
