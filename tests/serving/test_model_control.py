"""Loading and unloading while requests come: nobody else notices, and a mistake changes nothing."""

from __future__ import annotations

import asyncio
import math
import resource
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.errors import InvalidRequest, NotFound, Unavailable
from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import VersionFolder
from gateway.runtime.session import OnnxSession
from gateway.serving.model_control import NOT_LOADED, ModelControl
from gateway.state import keys
from gateway.state.client import Store
from gateway.types import Array, ModelKey
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.waiting import wait_until_async

Run = Callable[[Coroutine[Any, Any, Any]], Any]
ROW: dict[str, Array] = {"x": np.ones((1, 3), np.float32)}
LARGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class GatedLoader(Loader):
    """Loads when it is let."""

    started: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def load(self, folder: VersionFolder) -> ModelVersion:
        """As the real one, once the gate is open."""
        self.started.set()
        assert self.gate.wait(30.0)
        return Loader.load(self, folder)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_version(folder, "m", "1", onnx_models.affine(1.0))
    write_version(folder, "other", "1", onnx_models.affine(10.0))
    return folder


@contextmanager
def plane_of(models: Path, store: Store | None = None) -> Iterator[Plane]:
    with plane_over(models, models.parent, store=store) as plane:
        yield plane


def resident_bytes() -> int:
    """What this process holds of the machine's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def answered_by(plane: Plane, version: str | None = None, name: str = "m") -> str:
    return (await plane.predict(name, ROW, version)).key.version


def document(version: str = "1", revision: int = 1, **more: Any) -> dict[str, Any]:
    variants = [{"name": "stable", "version": version, "weight": 100}]
    return {"name": "m", "revision": revision, "variants": variants, **more}


async def put(store: Store, **more: Any) -> None:
    await store.set(keys.route("m"), orjson.dumps(document(**more)))


async def states(plane: Plane, *, only_ready: bool = False) -> dict[str, tuple[str, str]]:
    index = await plane.control.index(only_ready=only_ready)
    return {f"{entry['name']}/{entry['version']}": (entry["state"], entry["reason"]) for entry in index}


async def more_than(counts: dict[str, int], before: dict[str, int]) -> None:
    await wait_until_async(lambda: all(counts[label] > before[label] for label in counts))


class TestLoading:
    def test_a_new_version_serves_when_the_call_returns(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            assert await answered_by(plane) == "1"
            write_version(models, "m", "2", onnx_models.affine(2.0))
            write_version(models, "m", "10", onnx_models.affine(3.0))
            assert await plane.control.load("m") == ["1", "2", "10"]
            # Nobody wrote a route, so the highest version takes everything.
            assert await answered_by(plane) == "10"
            assert [await answered_by(plane, version) for version in ("1", "2", "10")] == ["1", "2", "10"]

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_a_new_model_serves_with_a_route_of_its_own(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            write_published_version(models, "late", "3", onnx_models.classifier())
            with pytest.raises(NotFound):
                await plane.predict("late", {"x": np.ones((1, 1), np.float32)})
            assert await plane.control.load("late") == ["3"]
            response = await plane.predict("late", {"x": np.ones((1, 1), np.float32)})
            assert plane.signer.verify(response.prediction_id).class_index == 1
            route = plane.routes.get("late")
            assert route is not None
            assert (route.revision, route.variants[0].version) == (0, "3")

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_one_version_can_be_named(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            write_version(models, "m", "2", onnx_models.affine(2.0))
            write_version(models, "m", "3", b"no model")
            assert await plane.control.load("m", "2") == ["1", "2"]

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_loading_what_is_loaded_changes_nothing(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            before = plane.registry.get("m", "1")
            assert await plane.control.load("m") == await plane.control.load("m", "1") == ["1"]
            assert plane.registry.get("m", "1") is before

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_a_broken_version_leaves_everything_as_it_was_and_is_named(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            before = list(plane.registry)
            write_version(models, "m", "2", onnx_models.affine(2.0))
            folder = write_published_version(models, "m", "3", onnx_models.affine(3.0))
            (folder / "model.onnx").write_bytes(onnx_models.affine(4.0))
            with pytest.raises(InvalidRequest, match=r"(?s)nothing was loaded, .*m/3/model\.onnx: sha256 is"):
                await plane.control.load("m")
            assert list(plane.registry) == before
            assert plane.registry.refused == {}
            assert await answered_by(plane) == "1"

        with plane_of(models) as plane:
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
        self, models: Path, run: Run, version: str, content: bytes, toml: str, reason: str
    ) -> None:
        async def scenario(plane: Plane) -> None:
            write_version(models, "m", version, content, toml)
            with pytest.raises(InvalidRequest) as caught:
                await plane.control.load("m")
            assert reason in caught.value.message
            assert (await states(plane))["m/1"] == ("READY", "")

        with plane_of(models) as plane:
            run(scenario(plane))

    @pytest.mark.parametrize(("name", "version"), [("absent", None), ("m", "9"), ("..", None), ("", None)])
    def test_what_the_repository_does_not_hold_is_not_found(
        self, models: Path, run: Run, name: str, version: str | None
    ) -> None:
        with plane_of(models) as plane, pytest.raises(NotFound, match="the model repository holds no "):
            run(plane.control.load(name, version))

    def test_a_version_refused_at_the_start_can_be_mended(self, models: Path, run: Run) -> None:
        folder = write_version(models, "broken", "1", b"no model")

        async def scenario(plane: Plane) -> None:
            with pytest.raises(InvalidRequest):
                await plane.control.load("broken")
            assert plane.registry.refused.keys() == {ModelKey("broken", "1")}
            (folder / "model.onnx").write_bytes(onnx_models.affine())
            assert await plane.control.load("broken") == ["1"]
            assert plane.registry.refused == {}
            assert await answered_by(plane, name="broken") == "1"

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_the_loop_goes_on_while_a_version_loads(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            write_version(models, "m", "2", onnx_models.affine(2.0))
            loader = GatedLoader("cpu", 1, plane.loader.executor, 30.0, plane.plane.finish)
            control = ModelControl(models, loader, plane.plane, plane.routes)
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

        with plane_of(models) as plane:
            run(scenario(plane))


class TestRoutesFollow:
    def test_a_stored_route_stays_in_force_when_a_version_is_added(self, models: Path, store: Store, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            await put(store)
            await plane.routes.refresh()
            write_version(models, "m", "2", onnx_models.affine(2.0))
            assert await plane.control.load("m") == ["1", "2"]
            assert await answered_by(plane) == "1"

        with plane_of(models, store) as plane:
            run(scenario(plane))

    def test_a_route_that_was_stored_before_its_model_came_decides_from_the_first_request_on(
        self, models: Path, store: Store, run: Run
    ) -> None:
        async def scenario(plane: Plane) -> None:
            for version in ("1", "2"):
                write_version(models, "late", version, onnx_models.affine())
            await store.set(keys.route("late"), orjson.dumps({**document("1"), "name": "late"}))
            await plane.control.load("late")
            assert await answered_by(plane, name="late") == "1"

        with plane_of(models, store) as plane:
            run(scenario(plane))

    def test_a_document_that_waited_for_its_version_comes_into_force_with_it(
        self, models: Path, store: Store, run: Run
    ) -> None:
        async def scenario(plane: Plane) -> None:
            await put(store, version="2")
            await plane.routes.refresh()
            assert "version '2' is not loaded" in plane.routes.problems["m"]
            write_version(models, "m", "2", onnx_models.affine(2.0))
            write_version(models, "m", "3", onnx_models.affine(3.0))
            await plane.control.load("m")
            assert plane.routes.problems == {}
            assert await answered_by(plane) == "2"

        with plane_of(models, store) as plane:
            run(scenario(plane))

    def test_without_the_store_the_last_good_route_of_a_model_that_comes_back_is_known(
        self, models: Path, run: Run
    ) -> None:
        write_version(models, "m", "2", onnx_models.affine(2.0))
        hidden = models.parent / "hidden"
        (models / "m").rename(hidden)
        (models.parent / "routes.json").write_bytes(orjson.dumps({"m": document("1", 7)}))

        async def scenario(plane: Plane) -> None:
            hidden.rename(models / "m")
            await plane.control.load("m")
            assert await answered_by(plane) == "1"

        with plane_of(models) as plane:
            run(scenario(plane))


class TestUnloading:
    def test_a_model_leaves_nothing_behind(self, models: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            assert await answered_by(plane) == await answered_by(plane, "1") == "1"
            loaded = plane.registry.get("m", "1").session
            assert isinstance(loaded, OnnxSession)
            session = weakref.ref(loaded._session)
            del loaded
            assert await plane.control.unload("m") == []
            assert session() is None
            assert plane.registry.names == ["other"]
            assert "m" not in plane.registry.decoders
            assert plane.routes.get("m") is None
            assert [route.name for route in plane.routes] == ["other"]
            assert plane.plane._choices.keys() | {key.name for key in plane.plane._direct_choices} <= {"other"}
            for version in ("1", None):
                with pytest.raises(NotFound, match="unknown model 'm'; models: other"):
                    await answered_by(plane, version)
            assert await answered_by(plane, name="other") == "1"
            assert (await states(plane))["m/1"] == ("UNAVAILABLE", NOT_LOADED)

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_the_default_route_falls_back_to_what_is_left(self, models: Path, run: Run) -> None:
        write_version(models, "m", "2", onnx_models.identity("INT64", ("n", 3)))

        async def scenario(plane: Plane) -> None:
            with pytest.raises(InvalidRequest, match="expected datatype INT64"):
                await answered_by(plane)
            assert await plane.control.unload("m", "2") == ["1"]
            assert await answered_by(plane) == "1"
            assert await plane.control.load("m") == ["1", "2"]

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_what_a_stored_route_names_stays_until_its_traffic_has_moved(
        self, models: Path, store: Store, run: Run
    ) -> None:
        write_version(models, "m", "2", onnx_models.affine(2.0))

        async def scenario(plane: Plane) -> None:
            # Not yet in force here: unloading looks before it leaps.
            await put(store)
            for version in ("1", None):
                with pytest.raises(InvalidRequest, match=r"route 'm' \(revision 1\) has version 1 as variant 'stable'"):
                    await plane.control.unload("m", version)
            assert plane.registry.versions("m") == ["1", "2"]
            assert await answered_by(plane) == "1"
            await put(store, version="2", revision=2)
            assert await plane.control.unload("m", "1") == ["2"]
            assert await answered_by(plane) == "2"

        with plane_of(models, store) as plane:
            run(scenario(plane))

    @pytest.mark.parametrize(("name", "version"), [("absent", None), ("absent", "1"), ("m", "9")])
    def test_what_is_not_loaded_is_not_found(self, models: Path, run: Run, name: str, version: str | None) -> None:
        with plane_of(models) as plane, pytest.raises(NotFound, match="unknown"):
            run(plane.control.unload(name, version))

    def test_a_version_refused_at_the_start_can_be_given_up(self, models: Path, run: Run) -> None:
        write_version(models, "m", "2", b"no model")

        async def scenario(plane: Plane) -> None:
            with pytest.raises(Unavailable):
                await answered_by(plane, "2")
            assert await plane.control.unload("m", "2") == ["1"]
            assert plane.registry.refused == {}

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_requests_in_flight_are_answered_first(self, models: Path, run: Run) -> None:
        write_version(models, "busy", "1", onnx_models.busy(), "[batching]\nmax_batch_rows = 1\n")

        async def scenario(plane: Plane) -> None:
            batcher = plane.registry.get("busy", "1").batcher
            assert isinstance(batcher, DynamicBatcher)
            batcher._surprises = math.inf
            turns = {"turns": np.array([[3_000]], np.int64)}
            waiting = [asyncio.create_task(plane.predict("busy", turns)) for _ in range(3)]
            await asyncio.sleep(0)
            unloading = asyncio.create_task(plane.control.unload("busy"))
            await wait_until_async(lambda: "busy" not in plane.registry.names)
            with pytest.raises(NotFound):
                await plane.predict("busy", turns)
            assert await unloading == []
            # Unloading is over only when they are.
            assert all(task.done() for task in waiting)
            assert [task.result().key.version for task in waiting] == ["1"] * 3

        with plane_of(models) as plane:
            run(scenario(plane))

    def test_its_memory_goes_back_to_the_system(self, models: Path, run: Run) -> None:
        write_version(models, "large", "1", onnx_models.large(LARGE_BYTES))

        async def scenario(plane: Plane) -> None:
            before = resident_bytes()
            await plane.control.unload("large")
            assert resident_bytes() < before - LARGE_BYTES / 2

        with plane_of(models) as plane:
            run(scenario(plane))


class TestIndex:
    def test_every_version_on_disk_or_loaded_is_told_with_its_state(self, models: Path, run: Run) -> None:
        write_version(models, "m", "2", b"no model")

        async def scenario(plane: Plane) -> None:
            write_version(models, "m", "10", onnx_models.affine())
            write_version(models, "m", "x", onnx_models.affine())
            write_version(models, "new", "1", b"")
            (models / "other" / "1" / "model.onnx").unlink()
            index = await states(plane)
            assert list(index) == ["m/1", "m/2", "m/x", "m/10", "new/1", "other/1"]
            assert index["m/1"] == index["other/1"] == ("READY", "")
            assert index["m/10"] == index["new/1"] == ("UNAVAILABLE", NOT_LOADED)
            assert index["m/2"][0] == index["m/x"][0] == "UNAVAILABLE"
            assert "ONNX Runtime cannot load it" in index["m/2"][1]
            assert "a version is a whole number" in index["m/x"][1]
            assert await states(plane, only_ready=True) == {"m/1": ("READY", ""), "other/1": ("READY", "")}

        with plane_of(models) as plane:
            run(scenario(plane))


def test_loads_and_unloads_under_traffic_cost_nobody_else_an_answer(models: Path, run: Run) -> None:
    write_version(models, "m", "2", onnx_models.affine(2.0))

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

    with plane_of(models) as plane:
        run(scenario(plane))
