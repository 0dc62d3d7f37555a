"""Routes follow what is loaded, and outrank it."""

from __future__ import annotations

from pathlib import Path

import orjson

from gateway.state import keys
from gateway.state.client import Store
from tests.support import onnx_models
from tests.support.control import Run, answered_by, document, put
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_of


def test_a_stored_route_stays_in_force_when_a_version_is_added(repository: Path, store: Store, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        await put(store)
        await plane.routes.refresh()
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        assert await plane.control.load("m") == ["1", "2"]
        assert await answered_by(plane) == "1"

    with plane_of(repository, store) as plane:
        run(scenario(plane))


def test_a_route_that_was_stored_before_its_model_came_decides_from_the_first_request_on(
    repository: Path, store: Store, run: Run
) -> None:
    async def scenario(plane: Plane) -> None:
        for version in ("1", "2"):
            write_version(repository, "late", version, onnx_models.affine())
        await store.set(keys.route("late"), orjson.dumps({**document("1"), "name": "late"}))
        await plane.control.load("late")
        assert await answered_by(plane, name="late") == "1"

    with plane_of(repository, store) as plane:
        run(scenario(plane))


def test_a_document_that_waited_for_its_version_comes_into_force_with_it(
    repository: Path, store: Store, run: Run
) -> None:
    async def scenario(plane: Plane) -> None:
        await put(store, version="2")
        await plane.routes.refresh()
        assert "version '2' is not loaded" in plane.routes.problems["m"]
        write_version(repository, "m", "2", onnx_models.affine(2.0))
        write_version(repository, "m", "3", onnx_models.affine(3.0))
        await plane.control.load("m")
        assert plane.routes.problems == {}
        assert await answered_by(plane) == "2"

    with plane_of(repository, store) as plane:
        run(scenario(plane))


def test_without_the_store_the_last_good_route_of_a_model_that_comes_back_is_known(repository: Path, run: Run) -> None:
    write_version(repository, "m", "2", onnx_models.affine(2.0))
    hidden = repository.parent / "hidden"
    (repository / "m").rename(hidden)
    (repository.parent / "routes.json").write_bytes(orjson.dumps({"m": document("1", 7)}))

    async def scenario(plane: Plane) -> None:
        hidden.rename(repository / "m")
        await plane.control.load("m")
        assert await answered_by(plane) == "1"

    with plane_of(repository) as plane:
        run(scenario(plane))
