"""Unloading while requests come: those in flight are answered, and nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import weakref
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import InvalidRequest, NotFound, Unavailable
from gateway.runtime.memory import resident_bytes
from gateway.serving.model_control import NOT_LOADED
from gateway.state.client import Store
from tests.support import onnx_models
from tests.support.control import Run, answered_by, put, states
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_of
from tests.support.versions import batcher_of, onnx_session_of
from tests.support.waiting import wait_until_async

LARGE_BYTES = 64 * 2**20


def test_a_model_leaves_nothing_behind(repository: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        assert await answered_by(plane) == await answered_by(plane, "1") == "1"
        session = weakref.ref(onnx_session_of(plane.registry.get("m", "1"))._session)
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

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_the_default_route_falls_back_to_what_is_left(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.identity("INT64", ("n", 3)))

    async def scenario(plane: Plane) -> None:
        with pytest.raises(InvalidRequest, match="expected datatype INT64"):
            await answered_by(plane)
        assert await plane.control.unload("m", "2") == ["1"]
        assert await answered_by(plane) == "1"
        assert await plane.control.load("m") == ["1", "2"]

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_what_a_stored_route_names_stays_until_its_traffic_has_moved(repository: Path, store: Store, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0))

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

    with plane_of(repository, store) as plane:
        run(scenario(plane))


@pytest.mark.parametrize(("name", "version"), [("absent", None), ("absent", "1"), ("m", "9")])
def test_what_is_not_loaded_is_not_found(repository: Path, run: Run, name: str, version: str | None) -> None:
    with plane_of(repository) as plane, pytest.raises(NotFound, match="unknown"):
        run(plane.control.unload(name, version))


def test_a_version_refused_at_the_start_can_be_given_up(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", b"no model")

    async def scenario(plane: Plane) -> None:
        with pytest.raises(Unavailable):
            await answered_by(plane, "2")
        assert await plane.control.unload("m", "2") == ["1"]
        assert plane.registry.refused == {}

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_requests_in_flight_are_answered_first(repository: Path, run: Run) -> None:
    write_version(repository, "busy", "1", onnx_models.busy(), "[batching]\nmax_batch_rows = 1\n")

    async def scenario(plane: Plane) -> None:
        batcher_of(plane.registry.get("busy", "1"))._surprises = math.inf
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

    with plane_of(repository) as plane:
        run(scenario(plane))


def test_its_memory_goes_back_to_the_system(repository: Path, run: Run) -> None:
    write_version(repository, "large", "1", onnx_models.large(LARGE_BYTES))

    async def scenario(plane: Plane) -> None:
        before = resident_bytes()
        await plane.control.unload("large")
        assert resident_bytes() < before - LARGE_BYTES / 2

    with plane_of(repository) as plane:
        run(scenario(plane))
