"""Child processes: they do not outlive the gateway, however it ends, and are started again when they die."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

CHECK_SECONDS = 0.25
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
"""A child that keeps dying is started again after pauses that double up to this."""
STOP_TIMEOUT_SECONDS = 15.0
SOCKET_PATH_LIMIT = 100
"""Unix socket paths are limited to 108 bytes on Linux and 104 on macOS."""


class ChildProcess:
    """One child and its command line."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Without an `environment` the child inherits ours."""
        self.name = name
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None while there is no child."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """False once the child has exited by itself."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child and wait until it is of use."""
        self.launch()

    def launch(self) -> None:
        """Start the child without waiting.

        It gets a session of its own: Ctrl-C reaches the gateway alone, which stops its children last.
        On Linux the kernel sends the child SIGTERM when the thread that called this ends without having done so
        (prctl(2), PR_SET_PDEATHSIG): call it on the main thread.
        """
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def die_with_parent() -> None:
            # Between fork and exec: one system call, nothing that could wait for a lock held by another thread.
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        self._process = subprocess.Popen(  # noqa: S603 -- our own binaries and arguments
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 -- see above
        )

    def stop(self) -> None:
        """SIGTERM, after a while SIGKILL; returns when the child is gone."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the %s does not stop; killing it", self.name)
            self._process.kill()
            self._process.wait()
        self._process = None

    async def keep_running(self) -> None:
        """Start the child again whenever it has exited, for ever."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        started = loop.time()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self.is_running:
                continue
            if loop.time() - started > LAST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error("the %s has exited; starting it again in %g s", self.name, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)
            started = loop.time()
            self.launch()


def socket_path(path: Path) -> Path:
    """Where a child listens: `path`, or where that is too long a place among the temporary files that stands for it."""
    if len(str(path)) <= SOCKET_PATH_LIMIT:
        return path
    digest = hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gateway-{digest}" / path.name
