"""Several gateways over one store: an edit reaches all of them, and a store that stops costs nobody a prediction."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.state.embedded import EmbeddedStore
from tests.support.requests import AFFINE
from tests.support.running import GatewayProcess, running
from tests.support.waiting import wait_until

PATH = "/admin/routes/affine"
GATEWAYS = 4


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A store that no gateway owns."""
    store = EmbeddedStore(tmp_path)
    store.start()
    yield store
    store.stop()


@contextmanager
def gateways(models: Path, folder: Path, store: EmbeddedStore, count: int) -> Iterator[list[GatewayProcess]]:
    options = ("--no-collector", "--redis-url", store.url)
    with ExitStack() as stack:
        yield [stack.enter_context(running(models, folder / str(number), *options)) for number in range(count)]


def only(version: str) -> dict[str, Any]:
    return {"variants": [{"name": f"v{version}", "version": version, "weight": 100}]}


def put(gateway: GatewayProcess, version: str, revision: int) -> httpx.Response:
    return gateway.ops.put(PATH, json=only(version), headers={"If-Match": f'"{revision}"'})


class Load:
    """Predictions one after the other on each of several threads, until the end."""

    def __init__(self, gateway: GatewayProcess, threads: int = 3) -> None:
        self.statuses: list[int] = []
        self.versions: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(gateway,)) for _ in range(threads)]

    def _run(self, gateway: GatewayProcess) -> None:
        with httpx.Client(base_url=gateway.public_url, timeout=30.0, trust_env=False) as client:
            while not self._stop.is_set():
                answer = client.post("/v2/models/affine/infer", json=AFFINE)
                self.statuses.append(answer.status_code)
                self.versions.append(answer.json().get("model_version", ""))

    def wait_for(self, more: int) -> None:
        """So many answers from now on."""
        enough = len(self.statuses) + more
        wait_until(lambda: len(self.statuses) >= enough, 60.0)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def freeze(store: EmbeddedStore) -> Callable[[], None]:
    """The store hangs; call what comes back to let it go on."""
    assert store.pid is not None
    pid = store.pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def end(store: EmbeddedStore) -> Callable[[], None]:
    """The store is gone; call what comes back to start it again."""
    store.stop()
    return store.start


def test_an_edit_reaches_every_gateway(models: Path, tmp_path: Path, shared: EmbeddedStore) -> None:
    with gateways(models, tmp_path, shared, GATEWAYS) as running_gateways:
        for revision in range(6):
            version = "1" if revision % 2 == 0 else "2"
            editor = running_gateways[revision % GATEWAYS]
            assert put(editor, version, revision).status_code == 200
            for gateway in running_gateways:
                wait_until(lambda: gateway.predict("affine", AFFINE).json()["model_version"] == version)  # noqa: B023
                assert gateway.ops.get(PATH).json()["revision"] == revision + 1


@pytest.mark.parametrize("stop", [freeze, end])
def test_a_store_that_stops_costs_no_prediction_and_no_edit_is_half_made(
    models: Path, tmp_path: Path, shared: EmbeddedStore, stop: Callable[[EmbeddedStore], Callable[[], None]]
) -> None:
    with gateways(models, tmp_path, shared, 2) as (one, other):
        assert put(one, "1", 0).status_code == 200
        wait_until(lambda: other.ops.get(PATH).json()["revision"] == 1)
        with Load(one) as load:
            load.wait_for(50)
            resume = stop(shared)
            try:
                refused = put(one, "2", 1)
                load.wait_for(200)
            finally:
                resume()
            assert refused.status_code == 503, refused.text
            # A store that hangs may still do what nobody waits for any more. Then it is done as a whole, everywhere.
            wait_until(lambda: one.ops.get("/admin/routes/affine/history").status_code == 200)
            wait_until(lambda: one.ops.get(PATH).json()["revision"] == other.ops.get(PATH).json()["revision"])
            revision = one.ops.get(PATH).json()["revision"]
            (newest, *_) = one.ops.get(f"{PATH}/history").json()["changes"]
            assert newest["revision"] == revision in {1, 2}
            assert newest["document"] == {key: v for key, v in one.ops.get(PATH).json().items() if key != "problem"}
            assert put(other, "2", revision).status_code == 200
            wait_until(lambda: load.versions[-1] == "2")
            load.wait_for(20)
    assert set(load.statuses) == {200}
    assert set(load.versions) == {"1", "2"}
