"""The rules in force: the last good ones, whatever happens to the store and to what stands in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import StoreUnavailable
from gateway.prediction_id import name_hash
from gateway.runtime.registry import Loader, Registry
from gateway.runtime.repository import scan
from gateway.runtime.scheduler import Scheduler
from gateway.serving import route_table as route_table_module
from gateway.serving.route_table import RouteTable
from gateway.state import keys
from gateway.state.client import Store, connect
from gateway.state.embedded import EmbeddedStore
from gateway.state.route_store import RouteStore
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.waiting import cancel, wait_until_async

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    models = tmp_path_factory.mktemp("models")
    write_version(models, "m", "1", onnx_models.affine(1.0))
    write_version(models, "m", "2", onnx_models.affine(2.0))
    write_version(models, "other", "1", onnx_models.affine(1.0))
    loaded = Registry()
    with ThreadPoolExecutor(1) as pool:
        Loader("cpu", 1, pool, Scheduler(2), 30.0, lambda version, batch: None).load_all(scan(models), loaded)
        yield loaded


def document(revision: int, version: str = "1", **more: Any) -> dict[str, Any]:
    variants = [{"name": f"v{version}", "version": version, "weight": 100}]
    return {"name": "m", "revision": revision, "variants": variants, **more}


def table(registry: Registry, store: Store, tmp_path: Path) -> RouteTable:
    made = RouteTable(registry, RouteStore(store), tmp_path / "routes.json")
    made.begin()
    return made


def in_force(routes: RouteTable, name: str = "m") -> tuple[int, str]:
    route = routes.get(name)
    assert route is not None
    return route.revision, route.choose({}, 0.5).variant.version


async def put(store: Store, raw: bytes | dict[str, Any]) -> None:
    await store.set(keys.route("m"), raw if isinstance(raw, bytes) else orjson.dumps(raw))


def test_before_anything_is_known_the_newest_version_takes_everything(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    routes = table(registry, store, tmp_path)
    assert in_force(routes) == (0, "2")
    assert not routes.is_known
    assert routes.get("absent") is None
    assert [route.name for route in routes] == ["m", "other"]


def test_what_the_store_says_is_in_force_after_a_refresh(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        assert in_force(routes) == (7, "1")
        assert in_force(routes, "other") == (0, "1")
        assert routes.is_known
        assert routes.problems == {}

    run(scenario())


@pytest.mark.parametrize(
    ("junk", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "document: expected an object"),
        (b"[" * 1_000 + b"]" * 1_000, "document: expected an object"),
        (orjson.dumps(document(8, "9")), "variants[0].version: version '9' is not loaded"),
        (orjson.dumps(document(8) | {"variants": []}), "variants: expected at least one"),
        (orjson.dumps(document(8) | {"name": "other"}), "name: expected 'm'"),
        (orjson.dumps(document(8, weight=1)), "document: unknown key 'weight'"),
        (b'{"name":"m","revision":8,"variants":[{"name":"v","version":"1","weight":NaN}]}', "not JSON"),
    ],
)
def test_an_invalid_edit_keeps_the_last_good_rules_and_is_told(
    junk: bytes,
    problem: str,
    registry: Registry,
    store: Store,
    tmp_path: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        await put(store, junk)
        with caplog.at_level(logging.ERROR):
            await routes.refresh()
            await routes.refresh()
        assert in_force(routes) == (7, "1")
        assert routes.problems["m"].startswith(problem)
        # Told once, not at every poll.
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
        await put(store, document(9, "2"))
        await routes.refresh()
        assert in_force(routes) == (9, "2")
        assert routes.problems == {}

    run(scenario())


def test_an_invalid_edit_of_one_route_leaves_the_others_alone(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, b"junk")
        good = {"name": "other", "revision": 3, "variants": [{"name": "v", "version": "1", "weight": 100}]}
        await store.set(keys.route("other"), orjson.dumps(good))
        await routes.refresh()
        assert in_force(routes, "other") == (3, "1")
        assert routes.problems.keys() == {"m"}

    run(scenario())


def test_a_document_that_disappeared_keeps_the_last_good_rules_and_is_told(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        await store.delete(keys.route("m"))
        await routes.refresh()
        assert in_force(routes) == (7, "1")
        assert "disappeared" in routes.problems["m"]

    run(scenario())


def test_a_route_under_a_key_of_the_wrong_kind_does_not_stop_the_others(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        await store.delete(keys.route("m"))
        await store.hset(keys.route("m"), "revision", "8")
        good = {"name": "other", "revision": 3, "variants": [{"name": "v", "version": "1", "weight": 100}]}
        await store.set(keys.route("other"), orjson.dumps(good))
        await routes.refresh()
        assert in_force(routes) == (7, "1")
        assert "m" in routes.problems
        assert in_force(routes, "other") == (3, "1")

    run(scenario())


def test_without_the_store_the_rules_stay(registry: Registry, tmp_path: Path, run: Run) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()
    store = connect(server.url)

    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        server.stop()
        with pytest.raises(StoreUnavailable):
            await routes.refresh()
        assert in_force(routes) == (7, "1")
        await store.aclose()

    run(scenario())


def test_a_start_without_the_store_takes_the_last_good_rules_from_the_snapshot(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        await put(store, document(7, "1"))
        await routes.refresh()
        await put(store, b"junk")
        await routes.refresh()
        nowhere = connect("redis://127.0.0.1:1")
        again = table(registry, nowhere, tmp_path)
        assert in_force(again) == (7, "1")
        assert again.is_known
        assert in_force(again, "other") == (0, "1")
        await nowhere.aclose()

    run(scenario())


def test_after_a_start_from_the_snapshot_a_store_that_lost_the_route_does_not_undo_it(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        await put(store, document(7, "1"))
        await table(registry, store, tmp_path).refresh()
        await store.delete(keys.route("m"))
        again = table(registry, store, tmp_path)
        await again.refresh()
        assert in_force(again) == (7, "1")
        assert "disappeared" in again.problems["m"]

    run(scenario())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"[]",
        b"7",
        b"null",
        b'{"m": null}',
        b'{"m": []}',
        orjson.dumps({"m": document(7, "9")}),
        orjson.dumps({"gone": document(7, "1")}),
    ],
)
def test_a_snapshot_that_makes_no_sense_does_not_stop_the_start(
    content: bytes, registry: Registry, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "routes.json").write_bytes(content)
    assert in_force(table(registry, store, tmp_path)) == (0, "2")


def test_a_snapshot_that_cannot_be_written_does_not_stop_a_change(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = RouteTable(registry, RouteStore(store), tmp_path / "absent" / "routes.json")
        routes.begin()
        await put(store, document(7, "1"))
        await routes.refresh()
        assert in_force(routes) == (7, "1")

    run(scenario())


def test_a_change_is_followed_at_once_and_an_edit_by_hand_at_the_next_poll(
    registry: Registry, store: Store, store_url: str, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        watching = asyncio.create_task(routes.watch(poll_seconds=0.05))
        await wait_until_async(lambda: routes.is_known)
        other = connect(store_url)
        await RouteStore(other).write(document(1, "1"), replaces=None, actor="ann", reason="")
        await wait_until_async(lambda: in_force(routes) == (1, "1"), 5.0)
        await put(other, document(2, "2"))
        await wait_until_async(lambda: in_force(routes) == (2, "2"), 5.0)
        await cancel(watching)
        await other.aclose()

    run(scenario())


def test_watching_survives_an_outage_of_the_store(
    registry: Registry, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_table_module, "RETRY_SECONDS", 0.01)
    server = EmbeddedStore(tmp_path)
    server.start()
    store = connect(server.url)

    async def scenario() -> None:
        routes = table(registry, store, tmp_path)
        watching = asyncio.create_task(routes.watch(poll_seconds=0.05))
        await put(store, document(1, "1"))
        await wait_until_async(lambda: in_force(routes) == (1, "1"))
        server.stop()
        await asyncio.sleep(0.1)
        assert in_force(routes) == (1, "1")
        assert not watching.done()
        server.start()
        await put(store, document(2, "2"))
        await wait_until_async(lambda: in_force(routes) == (2, "2"))
        await cancel(watching)
        await store.aclose()

    run(scenario())
    server.stop()


def test_variants_that_left_the_route_are_still_known_by_name_after_a_restart(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        writer = RouteStore(store)
        await writer.write(document(1, "1"), replaces=None, actor="", reason="")
        await writer.write(document(2, "2"), replaces=await store.get(keys.route("m")), actor="", reason="")  # type: ignore[arg-type]
        routes = table(registry, store, tmp_path)
        watching = asyncio.create_task(routes.watch(poll_seconds=0.05))
        await wait_until_async(lambda: in_force(routes) == (2, "2"))
        assert routes.variant_name(name_hash("v1")) == "v1"
        assert routes.variant_name(name_hash("v2")) == "v2"
        assert routes.variant_name(name_hash("never heard of")).startswith("#")
        await cancel(watching)

    run(scenario())


def test_junk_in_the_audit_stream_does_not_stop_the_watch(
    registry: Registry, store: Store, tmp_path: Path, run: Run
) -> None:
    async def scenario() -> None:
        await store.xadd(keys.audit("m"), {"hello": "world"})
        await store.xadd(keys.audit("m"), {"revision": "x", "actor": b"\xff", "reason": "", "document": "[]"})
        await put(store, document(1, "1"))
        routes = table(registry, store, tmp_path)
        watching = asyncio.create_task(routes.watch(poll_seconds=0.05))
        await wait_until_async(lambda: watching.done() or in_force(routes) == (1, "1"))
        assert not watching.done()
        await cancel(watching)

    run(scenario())


class TestAliases:
    def test_an_alias_leads_to_its_route_until_it_is_taken_away(
        self, registry: Registry, store: Store, tmp_path: Path, run: Run
    ) -> None:
        async def scenario() -> None:
            routes = table(registry, store, tmp_path)
            await put(store, document(1, aliases=["jobs"]))
            await routes.refresh()
            assert in_force(routes, "jobs") == (1, "1")
            assert routes.leading("jobs").key.version == "1"
            assert [routes.model_of(name) for name in ("jobs", "m", "absent")] == ["m", "m", "absent"]
            assert [route.name for route in routes] == ["m", "other"]
            assert in_force(table(registry, connect("redis://127.0.0.1:1"), tmp_path), "jobs") == (1, "1")
            await put(store, document(2))
            await routes.refresh()
            assert routes.get("jobs") is None

        run(scenario())

    @pytest.mark.parametrize(
        ("alias", "problem"), [("other", "'other' is a model"), ("work", "'work' is an alias of route 'other'")]
    )
    def test_a_name_that_something_else_has_is_refused(
        self, alias: str, problem: str, registry: Registry, store: Store, tmp_path: Path, run: Run
    ) -> None:
        async def scenario() -> None:
            routes = table(registry, store, tmp_path)
            other = {"name": "other", "revision": 1, "aliases": ["work"]}
            other |= {"variants": [{"name": "v", "version": "1", "weight": 100}]}
            await store.set(keys.route("other"), orjson.dumps(other))
            await routes.refresh()
            await put(store, document(1, aliases=[alias]))
            await routes.refresh()
            assert routes.problems["m"].startswith(f"aliases[0]: {problem}")
            assert in_force(routes, "work") == (1, "1")
            # Once the name is free, the route that wanted it gets it.
            await store.set(keys.route("other"), orjson.dumps({**other, "revision": 2, "aliases": []}))
            await routes.refresh()
            assert routes.get("work") is (routes.get("m") if alias == "work" else None)

        run(scenario())
