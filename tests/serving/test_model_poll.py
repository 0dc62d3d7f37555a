"""The poll acts on what changed, once it is over, and leaves everything else alone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from gateway.errors import NotFound
from gateway.serving.model_control import NOT_LOADED, ModelControl
from gateway.serving.model_poll import ModelPoll
from gateway.state.client import Store
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.control import GatedLoader, Run, answered_by, put, states
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_of
from tests.support.waiting import wait_until_async

FAILURES = "gateway_model_load_failures_total"


def poll_of(repository: Path, plane: Plane) -> ModelPoll:
    return ModelPoll(repository, plane.registry, plane.control)


async def look_twice(poll: ModelPoll) -> None:
    """A change is over when two looks saw the same."""
    await poll.look()
    await poll.look()


def test_a_new_version_and_a_new_model_are_loaded_and_a_removed_one_goes(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        write_version(repository, "late", "7", onnx_models.affine(3.0))
        await look_twice(poll)
        assert await answered_by(plane) == "2"
        assert await answered_by(plane, name="late") == "7"
        shutil.rmtree(repository / "m" / "2")
        shutil.rmtree(repository / "late")
        await look_twice(poll)
        assert await answered_by(plane) == "1"
        assert plane.registry.names == ["m", "other"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_what_came_while_the_gateway_started_is_not_overlooked(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        (repository / "other" / "1" / "model.onnx").write_bytes(onnx_models.affine(5.0))
        await look_twice(poll_of(repository, plane))
        assert plane.registry.versions("m") == ["1", "2"]
        assert "the files are not those that serve" in (await states(plane))["other/1"][1]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_a_folder_that_is_still_written_is_left_alone(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        content = onnx_models.affine(2.0)
        path = write_version(repository, "m", "2", b"") / "model.onnx"
        for size in range(0, len(content), len(content) // 5):
            path.write_bytes(content[:size])
            await poll.look()
        path.write_bytes(content)
        await poll.look()
        assert plane.registry.versions("m") == ["1"]
        await poll.look()
        assert plane.registry.versions("m") == ["1", "2"]
        assert plane.counted(FAILURES) == 0

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_a_broken_version_is_tried_once_and_again_when_it_is_mended(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        folder = write_published_version(repository, "m", "2", onnx_models.classifier())
        (folder / "model.onnx").write_bytes(onnx_models.affine())
        for _ in range(4):
            await poll.look()
        assert plane.counted(FAILURES, model="m", version="2") == 1
        assert "m/2/model.onnx: sha256 is" in (await states(plane))["m/2"][1]
        assert await answered_by(plane) == "1"
        # It is nobody's fault who serves already, so the gateway stays ready.
        assert plane.registry.refused == {}
        (folder / "model.onnx").write_bytes(onnx_models.classifier())
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1", "2"]
        assert (await states(plane))["m/2"] == ("READY", "")

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_what_was_refused_at_the_start_is_mended_or_given_up(repository: Path, run: Run) -> None:
    mended = write_version(repository, "a", "1", b"no model")
    write_version(repository, "b", "1", b"no model")

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        assert plane.registry.refused.keys() == {ModelKey("a", "1"), ModelKey("b", "1")}
        assert plane.counted(FAILURES) == 0
        (mended / "model.onnx").write_bytes(onnx_models.affine())
        shutil.rmtree(repository / "b")
        await look_twice(poll)
        assert plane.registry.refused == {}
        assert await answered_by(plane, name="a") == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_what_an_operator_unloaded_stays_so_until_it_changes(repository: Path, run: Run) -> None:
    folder = write_version(repository, "m", "2", onnx_models.affine(2.0))

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        await plane.control.unload("m", "2")
        write_version(repository, "m", "3", onnx_models.affine(3.0))
        (repository / "m" / "model.toml").write_text("[batching]\nmax_batch_rows = 8\n")
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1", "3"]
        assert (await states(plane))["m/2"] == ("UNAVAILABLE", NOT_LOADED)
        (folder / "model.onnx").write_bytes(onnx_models.affine(4.0))
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1", "2", "3"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_model_toml_is_followed_and_what_is_wrong_with_it_is_told(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0))
    toml = repository / "m" / "model.toml"

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        toml.write_text("[versions]\nspecific = [1]\n")
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1"]
        toml.write_text("[versions]\nspecify = [2]\n")
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1"]
        assert "versions.specify" in (await states(plane))["m/1"][1]
        toml.unlink()
        await look_twice(poll)
        assert plane.registry.versions("m") == ["1", "2"]
        assert {reason for _, reason in (await states(plane)).values()} == {""}

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_with_the_latest_gone_the_one_before_is_loaded_first(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0), "[versions]\nlatest = 1\n")

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        assert plane.registry.versions("m") == ["2"]
        shutil.rmtree(repository / "m" / "2")
        await look_twice(poll)
        assert await answered_by(plane) == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_what_a_route_names_stays_when_its_folder_goes_until_the_route_moves(
    repository: Path, store: Store, run: Run
) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0))

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await put(store)
        await plane.routes.refresh()
        await look_twice(poll)
        shutil.rmtree(repository / "m" / "1")
        await look_twice(poll)
        assert await answered_by(plane) == "1"
        await put(store, version="2", revision=2)
        await plane.routes.refresh()
        await poll.look()
        assert plane.registry.versions("m") == ["2"]

    with plane_of(repository, store) as plane:
        run(scenario(plane))


def test_a_repository_that_is_gone_or_empty_takes_nothing_with_it(
    repository: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    hidden, empty = repository.parent / "hidden", repository.parent / "empty"
    empty.mkdir()

    async def scenario(plane: Plane) -> None:
        poll = poll_of(repository, plane)
        await look_twice(poll)
        shutil.move(repository, hidden)
        await look_twice(poll)
        shutil.copytree(empty, repository)
        await look_twice(poll)
        assert plane.registry.names == ["m", "other"]
        assert len([record for record in caplog.records if "what is loaded serves on" in record.message]) == 1
        shutil.rmtree(repository)
        shutil.move(hidden, repository)
        shutil.rmtree(repository / "other")
        await look_twice(poll)
        assert plane.registry.names == ["m"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_the_poll_and_an_operator_at_once_both_get_what_they_asked_for(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        loader = GatedLoader("cpu", 1, plane.loader.executor, plane.loader.scheduler, 30.0, plane.plane.finish)
        control = ModelControl(repository, loader, plane.plane, plane.routes, plane.metrics)
        poll = ModelPoll(repository, plane.registry, control)
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        await poll.look()
        looking = asyncio.create_task(poll.look())
        await wait_until_async(loader.started.is_set)
        loading = asyncio.create_task(control.load("m"))
        unloading = asyncio.create_task(control.unload("m", "1"))
        again = asyncio.create_task(control.unload("m", "1"))
        await asyncio.sleep(0)
        assert not loading.done()
        loader.gate.set()
        await looking
        assert await loading == ["1", "2"]
        assert await unloading == ["2"]
        with pytest.raises(NotFound, match="unknown version '1'"):
            await again
        await look_twice(poll)
        assert plane.registry.versions("m") == ["2"]
        assert plane.counted(FAILURES) == 0

    with plane_of(repository) as plane:
        run(scenario(plane))
