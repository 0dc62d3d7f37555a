"""Which versions are loaded: by policy, by what changed on disk, as far as memory and signatures allow."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from gateway.errors import InsufficientMemory, InvalidRequest, NotFound
from gateway.runtime.trust import sign
from gateway.serving.model_control import LEFT_OUT
from gateway.state import keys
from gateway.state.client import Store
from tests.support import onnx_models
from tests.support.control import Run, answered_by, document, put, states
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_of
from tests.support.signing import KeyPair

FAILURES = "gateway_model_load_failures_total"
MIB = 2**20


class TestPolicy:
    @pytest.fixture(autouse=True)
    def _only_the_latest(self, repository: Path) -> None:
        write_version(repository, "m", "2", onnx_models.affine(2.0), "[versions]\nlatest = 1\n")

    def test_what_is_left_out_is_told_and_cannot_be_loaded(self, repository: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            assert plane.registry.versions("m") == ["2"]
            assert (await states(plane))["m/1"] == ("UNAVAILABLE", LEFT_OUT)
            with pytest.raises(InvalidRequest, match=r"m/1 is not loaded; \[versions\] in model\.toml leaves it out"):
                await plane.control.load("m", "1")
            with pytest.raises(NotFound):
                await plane.control.load("m", "7")
            assert await plane.control.load("m") == ["2"]

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_the_new_version_comes_and_the_old_one_goes_in_one_turn(self, repository: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            stop, answers = False, []

            async def hammer() -> None:
                while not stop:
                    answers.append(await answered_by(plane))

            traffic = [asyncio.create_task(hammer()) for _ in range(4)]
            for new in ("3", "4", "5"):
                write_version(repository, "m", new, onnx_models.affine(float(new)))
                assert await plane.control.load("m") == [new]
            stop = True
            await asyncio.gather(*traffic)
            # No request failed, and no version came back.
            assert answers == sorted(answers)
            assert await answered_by(plane) == "5"

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_a_broken_new_version_leaves_the_old_one_serving(self, repository: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            write_version(repository, "m", "3", b"no model")
            with pytest.raises(InvalidRequest, match="nothing was loaded"):
                await plane.control.load("m")
            assert await answered_by(plane) == "2"
            await plane.control.follow("m", {"3"})
            assert plane.registry.versions("m") == ["2"]
            state, reason = (await states(plane))["m/3"]
            assert (state, "ONNX Runtime cannot load it" in reason) == ("UNAVAILABLE", True)
            assert plane.counted(FAILURES, model="m", version="3") == 2

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_a_route_keeps_what_the_policy_leaves_out_until_it_moves(
        self, repository: Path, store: Store, run: Run
    ) -> None:
        async def scenario(plane: Plane) -> None:
            await put(store, version="2")
            await plane.routes.refresh()
            write_version(repository, "m", "3", onnx_models.affine(3.0))
            await plane.control.follow("m", {"3"})
            assert plane.registry.versions("m") == ["2", "3"]
            assert await answered_by(plane) == "2"
            assert plane.control.released() == set()
            await put(store, version="3", revision=2)
            await plane.routes.refresh()
            assert plane.control.released() == {"m"}
            await plane.control.follow("m", ())
            assert plane.registry.versions("m") == ["3"]
            assert plane.control.released() == set()

        with plane_of(repository, store) as plane:
            run(scenario(plane))

    def test_what_a_stored_route_names_is_known_before_anything_is_loaded(
        self, repository: Path, store: Store, run: Run
    ) -> None:
        (repository.parent / "routes.json").write_bytes(
            orjson.dumps({"m": document("7"), "late": document("1"), "odd": 7})
        )

        async def scenario(plane: Plane) -> None:
            await put(store, version="9")
            await store.set(keys.route("late"), orjson.dumps(document("2")))
            await store.set(keys.route("odd"), b"no JSON")
            # Of `m` a route is in force, which what was last good has become a part of.
            expected = {"m": {"9"}, "late": {"1", "2"}, "odd": set(), "absent": set()}
            assert await plane.routes.named_versions(expected.keys()) == expected

        with plane_of(repository, store) as plane:
            run(scenario(plane))

    def test_a_choice_of_nothing_is_a_mistake_and_nothing_goes(self, repository: Path, run: Run) -> None:
        toml = repository / "m" / "model.toml"

        async def scenario(plane: Plane) -> None:
            toml.write_text("[versions]\nspecific = [22]\n")
            with pytest.raises(InvalidRequest, match="m/<version> is not loaded"):
                await plane.control.load("m")
            await plane.control.follow("m", {"model.toml"})
            assert await answered_by(plane) == "2"

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_a_folder_that_is_no_version_does_not_keep_the_old_one(self, repository: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            write_version(repository, "m", "3", onnx_models.affine(3.0))
            write_version(repository, "m", "3.bak", onnx_models.affine(3.0))
            await plane.control.follow("m", {"3", "3.bak"})
            assert plane.registry.versions("m") == ["3"]
            assert "a version is a whole number" in (await states(plane))["m/3.bak"][1]

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_what_a_route_kept_is_released_by_the_next_load_too(self, repository: Path, store: Store, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            await put(store, version="2")
            await plane.routes.refresh()
            write_version(repository, "m", "3", onnx_models.affine(3.0))
            for version in (None, "3"):
                assert await plane.control.load("m", version) == ["2", "3"]
            await put(store, version="3", revision=2)
            assert await plane.control.load("m", "3") == ["3"]

        with plane_of(repository, store) as plane:
            run(scenario(plane))


class TestReplacedFiles:
    def test_other_bytes_under_the_same_version_are_refused_and_the_old_ones_serve(
        self, repository: Path, run: Run
    ) -> None:
        async def scenario(plane: Plane) -> None:
            before = plane.registry.get("m", "1")
            (repository / "m" / "1" / "model.onnx").write_bytes(onnx_models.affine(5.0))
            with pytest.raises(InvalidRequest, match=r"m/1: the files are not those that serve as m/1, .* next one"):
                await plane.control.load("m")
            await plane.control.follow("m", {"1"})
            assert plane.registry.get("m", "1") is before
            state, reason = (await states(plane))["m/1"]
            assert (state, "the files are not those that serve" in reason) == ("READY", True)
            assert plane.counted(FAILURES, model="m", version="1") == 2
            (repository / "m" / "1" / "model.onnx").write_bytes(onnx_models.affine(1.0))
            await plane.control.follow("m", {"1"})
            assert (await states(plane))["m/1"] == ("READY", "")

        with plane_of(repository) as plane:
            run(scenario(plane))

    def test_the_same_bytes_written_again_are_the_same_version(self, repository: Path, run: Run) -> None:
        async def scenario(plane: Plane) -> None:
            path = repository / "m" / "1" / "model.onnx"
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
            assert await plane.control.load("m") == ["1"]
            assert (await states(plane))["m/1"] == ("READY", "")

        with plane_of(repository) as plane:
            run(scenario(plane))


def test_only_signed_versions_are_loaded_where_there_are_keys(repository: Path, run: Run) -> None:
    key = KeyPair(repository.parent)
    sign(write_published_version(repository, "signed", "1", onnx_models.classifier()), key.private)

    async def scenario(plane: Plane) -> None:
        assert plane.registry.names == ["signed"]
        assert {str(refused) for refused in plane.registry.refused} == {"m/1", "other/1"}
        folder = write_published_version(repository, "signed", "2", onnx_models.classifier())
        with pytest.raises(InvalidRequest, match=r"signed/2/manifest\.json\.sig: not there"):
            await plane.control.load("signed")
        sign(folder, key.private)
        assert await plane.control.load("signed") == ["1", "2"]

    with plane_of(repository, model_keys=key.public) as plane:
        run(scenario(plane))


def test_a_load_without_room_is_refused_and_room_is_made_by_unloading(repository: Path, run: Run) -> None:
    write_version(repository, "large", "1", onnx_models.large(32 * MIB))

    async def scenario(plane: Plane) -> None:
        assert plane.registry.get("large", "1").memory_bytes > 31 * MIB
        write_version(repository, "large", "2", onnx_models.large(32 * MIB))
        with pytest.raises(InsufficientMemory, match=r"nothing was loaded, .* may need, while it loads, 128\.0 MiB"):
            await plane.control.load("large")
        assert plane.registry.versions("large") == ["1"]
        await plane.control.unload("large", "1")
        assert await plane.control.load("large", "2") == ["2"]

    with plane_of(repository, memory_bytes=150 * MIB) as plane:
        run(scenario(plane))
