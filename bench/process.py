"""A server as a child: started in a session of its own, stopped with all that it started, by process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.cpu import ProcessStat, processes, tree
from bench.environments import PeerUnavailable
from bench.places import ROOT

STOP_TIMEOUT_SECONDS = 20.0
LOG_LINES = 6


class ServerProcess:
    """One server. Its output goes to a file, whose end is the reason given when it does not start."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it in the repository's root."""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process itself; what it started is found from here."""
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool], timeout: float) -> None:
        """Raises `PeerUnavailable` with the end of its output if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while not is_ready():
            if self._process.poll() is not None:
                raise PeerUnavailable(f"ended with status {self._process.returncode}: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise PeerUnavailable(f"not ready within {timeout:.0f} s: {self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self) -> str:
        """The end of its output on one line, without this machine's folders."""
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()[-LOG_LINES:]
        return " / ".join(lines).replace(str(ROOT), ".").replace(str(Path.home()), "~")

    def stop(self) -> None:
        """SIGTERM to the process, then SIGKILL to whatever is left of its tree."""
        members = tree(self.pid, processes())
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for leftover in still_running(members, processes(), self.pid):
            try:
                os.kill(leftover.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # It ended by itself just now.


def still_running(before: list[ProcessStat], now: list[ProcessStat], root: int) -> list[ProcessStat]:
    """Members of a tree that outlived its root. A process id given to another process since is not among them."""
    known = {(one.pid, one.started) for one in before}
    return [one for one in now if (one.pid, one.started) in known or one.session == root]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def accepts_connections(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0
