"""What tests of every layer share: a real store, a loop to talk to it, and a real running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.state.client import Store, connect
from gateway.state.embedded import EmbeddedStore
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.requests import turns
from tests.support.running import GatewayProcess, running


@pytest.fixture(scope="session")
def _store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedStore(tmp_path_factory.mktemp("store"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def store_url(_store_server: str) -> str:
    """URL of an empty Valkey."""
    with Redis.from_url(_store_server) as client:
        client.flushall()
    return _store_server


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run coroutines, all of one test in the same loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def store(store_url: str, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> Iterator[Store]:
    """A client of the empty Valkey, to be used from `run`."""
    client = connect(store_url)
    yield client
    run(client.aclose())


def write_models(models: Path) -> Path:
    """One model for each property that the API shows."""
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "affine", "2", onnx_models.affine(3.0))
    # A queue that is easy to fill, and a way to keep the runner busy: the input says for how long.
    limits = "[batching]\nmax_batch_rows = 1\nmax_request_rows = 8\nmax_queue_rows = 4\n"
    write_version(models, "busy", "1", onnx_models.busy(), toml=limits)
    write_published_version(models, "classifier", "1", onnx_models.classifier())
    write_published_version(models, "unscored", "1", onnx_models.classifier_without_score())
    write_version(models, "logarithm", "1", onnx_models.logarithm())
    write_version(models, "lookup", "1", onnx_models.lookup())
    write_version(models, "text", "1", onnx_models.identity("BYTES", ("n", 1)))
    write_version(models, "total", "1", onnx_models.total())
    for datatype in onnx_models.ONNX_TYPES:
        if datatype != "BYTES":
            write_version(models, f"echo-{datatype}", "1", onnx_models.identity(datatype))
    write_version(models, "fixed", "1", onnx_models.fixed_rows())
    return models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of tiny models."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def gateway(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that tests share: leave its routes as they were, and stop nothing."""
    options = ("--no-collector", "--max-body-bytes", "65536")
    with running(models, tmp_path_factory.mktemp("gateway"), *options) as started:
        # Its rows of zeros were fast, so the first slow one still runs on the loop, and no other.
        assert started.predict("busy", turns(5_000)).status_code == 200
        yield started
