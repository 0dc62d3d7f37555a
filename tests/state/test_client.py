from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.errors import StartupError, StoreUnavailable
from gateway.state import client as client_module
from gateway.state.client import Store, connect, redact, store_errors
from gateway.state.embedded import EmbeddedStore

Run = Callable[[Any], Any]


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://localhost:port"])
def test_a_url_that_is_none_stops_the_start_naming_it(url: str) -> None:
    with pytest.raises(StartupError, match="redis-url"):
        connect(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://user:secret@h/1?x=y", "rediss://user:***@h/1?x=y"),
        ("redis://h:6379", "redis://h:6379"),
        ("redis://user@h:6379", "redis://user@h:6379"),
        ("unix:///tmp/valkey.sock", "unix:///tmp/valkey.sock"),
        ("unix:///tmp/valkey.sock?db=1&password=secret&x=y", "unix:///tmp/valkey.sock?db=1&password=***&x=y"),
        ("redis://h/0?password=secret", "redis://h/0?password=***"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_the_refusal_of_a_url_does_not_show_its_password() -> None:
    with pytest.raises(StartupError) as caught:
        connect("redis://:hunter2@localhost:port")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ResponseError("no"), OSError("gone"), TimeoutError()])
def test_every_failure_of_the_store_is_unavailable_and_says_when_to_retry(error: Exception) -> None:
    with pytest.raises(StoreUnavailable) as caught, store_errors():
        raise error
    assert caught.value.retry_after == 1.0


def test_a_bug_is_not_mistaken_for_a_missing_store() -> None:
    with pytest.raises(KeyError), store_errors():
        raise KeyError("x")


def test_a_command_that_timed_out_is_not_sent_again(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # It may have run: a second INCR would count twice.
    monkeypatch.setattr(client_module, "COMMAND_TIMEOUT_SECONDS", 0.3)
    server = EmbeddedStore(tmp_path)
    server.start()
    try:
        client = connect(server.url)

        async def scenario() -> None:
            await client.set("counter", 0)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(StoreUnavailable), store_errors():
                await client.incr("counter")
            assert time.monotonic() - started < 3.0
            os.kill(server.pid, signal.SIGCONT)
            assert await client.get("counter") == b"1"
            await client.aclose()

        run(scenario())
    finally:
        server.stop()


def test_a_client_connects_again_by_itself(tmp_path: Path, run: Run) -> None:
    server = EmbeddedStore(tmp_path)
    client = connect(server.url)

    async def ping() -> bool:
        try:
            with store_errors():
                await client.ping()
        except StoreUnavailable:
            return False
        return True

    async def close() -> None:
        await client.aclose()

    assert not run(ping())
    server.start()
    assert run(ping())
    server.stop()
    assert not run(ping())
    server.start()
    assert run(ping())
    run(close())
    server.stop()


def test_a_store_is_typed_as_what_connect_returns(store: Store, run: Run) -> None:
    async def scenario() -> None:
        await store.set("k", "v")
        assert await store.get("k") == b"v"

    run(scenario())
