"""The embedded store: it keeps its data, ends with its parent however that ends, and fits into any folder."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.state.embedded import EmbeddedStore
from gateway.state.sockets import SOCKET_PATH_LIMIT
from tests.support.running import clean_environment, is_alive
from tests.support.waiting import cancel, wait_until, wait_until_async

Run = Callable[[Any], Any]


def test_what_was_written_survives_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        server = EmbeddedStore(tmp_path)
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("counter") == expected
            client.incr("counter")
        server.stop()
        assert not server.is_running


def test_what_was_written_survives_a_crash(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()
    assert server.pid is not None
    with Redis.from_url(server.url) as client:
        client.set("k", "v")
        # The append-only file is written before the answer, and synced to the disk each second.
        os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.is_running)
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.get("k") == b"v"
    server.stop()


def test_it_answers_on_a_socket_of_its_owner_and_on_no_port(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()
    path = Path(server.url.removeprefix("unix://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with Redis.from_url(server.url) as client:
        assert client.config_get("port") == {"port": "0"}
    server.stop()


PARENT = """
import sys, time
from pathlib import Path
from gateway.state.embedded import EmbeddedStore
server = EmbeddedStore(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_it_dies_with_its_parent_however_that_dies(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=clean_environment()
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(number)
        assert parent.wait(10) == -number
    wait_until(lambda: not is_alive(pid))


def test_a_data_directory_too_deep_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    server = EmbeddedStore(deep)
    assert len(server.url.removeprefix("unix://")) <= SOCKET_PATH_LIMIT
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.ping()
    folder = Path(server.url.removeprefix("unix://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    server.stop()
    assert (deep / "valkey").is_dir()
    assert EmbeddedStore(tmp_path / "other" / ("d" * 60) / ("e" * 60)).url != server.url
    folder.rmdir()


def test_a_socket_left_behind_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    path = Path(server.url.removeprefix("unix://"))
    path.parent.mkdir(parents=True)
    path.write_text("left behind")
    server.start()
    assert server.is_running
    server.stop()


def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("no manifest at all\n")
    server = EmbeddedStore(tmp_path)
    with pytest.raises(StartupError, match=r"(?s)did not start; the end of its log:.*AOF"):
        server.start()
    assert not server.is_running


def test_it_is_started_again_when_it_dies(tmp_path: Path, run: Run) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()

    async def scenario() -> None:
        keeping = asyncio.create_task(server.keep_running())
        first = server.pid
        assert first is not None
        with Redis.from_url(server.url) as client:
            client.set("k", "v")
        os.kill(first, signal.SIGKILL)
        await wait_until_async(lambda: server.pid != first and server.is_running)
        await cancel(keeping)

    run(scenario())
    with Redis.from_url(server.url) as client:
        wait_until(lambda: _answers(client))
        assert client.get("k") == b"v"
    server.stop()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
