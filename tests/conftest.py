"""What tests of every layer share: a real store, and a loop to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from redis import Redis

from gateway.state.client import Store, connect
from gateway.state.embedded import EmbeddedStore


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
