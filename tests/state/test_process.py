from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.state import process as process_module
from gateway.state.process import ChildProcess
from tests.support.running import is_alive
from tests.support.waiting import cancel, wait_until, wait_until_async

Run = Callable[[Any], Any]


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


SLEEPER = python("import time; time.sleep(60)")


@pytest.fixture(autouse=True)
def _without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(process_module, "FIRST_PAUSE_SECONDS", 0.02)


def test_a_child_runs_until_it_is_stopped() -> None:
    child = ChildProcess("child", SLEEPER)
    assert (child.is_running, child.pid) == (False, None)
    child.start()
    pid = child.pid or 0
    assert is_alive(pid)
    assert child.is_running
    child.stop()
    assert (child.is_running, child.pid) == (False, None)
    assert not is_alive(pid)


def test_stopping_what_is_not_running_is_fine() -> None:
    child = ChildProcess("child", python(""))
    child.stop()
    child.start()
    wait_until(lambda: not child.is_running)
    child.stop()
    child.stop()


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STOP_TIMEOUT_SECONDS", 0.2)
    deaf = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    child = ChildProcess("child", python(deaf, str(tmp_path / "ready")))
    child.start()
    wait_until((tmp_path / "ready").exists)
    pid = child.pid
    assert pid is not None
    child.stop()
    assert not is_alive(pid)


def test_a_child_has_a_session_of_its_own_so_that_ctrl_c_reaches_the_gateway_alone() -> None:
    child = ChildProcess("child", SLEEPER)
    child.start()
    assert child.pid is not None
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.stop()


def test_a_child_gets_the_environment_it_is_given_and_nothing_else(tmp_path: Path) -> None:
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ.get('SECRET', 'none'))"
    for environment, expected in (({"SECRET": "s"}, "s"), ({}, "none")):
        child = ChildProcess("child", python(code, str(tmp_path / expected)), environment)
        child.start()
        wait_until(lambda: not child.is_running)  # noqa: B023 -- waited for here
        child.stop()
        assert (tmp_path / expected).read_text() == expected


def test_a_child_that_exits_is_started_again_with_growing_pauses(tmp_path: Path, run: Run) -> None:
    code = "import pathlib, sys, time; open(sys.argv[1], 'a').write(str(time.monotonic()) + '\\n')"
    starts = tmp_path / "starts"
    child = ChildProcess("child", python(code, str(starts)))
    child.start()

    async def scenario() -> None:
        keeping = asyncio.create_task(child.keep_running())
        await wait_until_async(lambda: starts.exists() and len(starts.read_text().splitlines()) >= 5)
        await cancel(keeping)

    run(scenario())
    child.stop()
    times = [float(line) for line in starts.read_text().splitlines()]
    # Pauses of 0.02, 0.04, 0.08 and 0.16 s, at least.
    assert times[4] - times[0] >= 0.3


def test_whoever_knows_better_starts_it_again_and_the_log_says_how_it_ended(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    child = ChildProcess("child", python("import os; os.kill(os.getpid(), 9)"))
    child.start()
    again = asyncio.Event()

    async def start_again() -> None:
        again.set()
        child.launch()

    async def scenario() -> None:
        keeping = asyncio.create_task(child.keep_running(start_again))
        await again.wait()
        await cancel(keeping)

    run(scenario())
    child.stop()
    assert "the child has exited (SIGKILL); starting it again in 0.02 s" in caplog.text


def test_a_running_child_is_left_alone(run: Run) -> None:
    child = ChildProcess("child", SLEEPER)
    child.start()
    pid = child.pid

    async def scenario() -> None:
        keeping = asyncio.create_task(child.keep_running())
        await asyncio.sleep(0.1)
        await cancel(keeping)

    run(scenario())
    assert child.pid == pid
    child.stop()


def test_a_child_that_is_killed_counts_as_exited() -> None:
    child = ChildProcess("child", SLEEPER)
    child.start()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not child.is_running)
    child.stop()
