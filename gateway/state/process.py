"""Child processes: they do not outlive the gateway, however it ends, and are started again when they die."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

CHECK_SECONDS = 0.25
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 30.0
"""A child that keeps dying is started again after pauses that double up to this."""
STOP_TIMEOUT_SECONDS = 15.0


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

    @property
    def exit_code(self) -> int | None:
        """Of a child that has exited; negative for the signal that ended it."""
        return self._process.poll() if self._process else None

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
        parent = os.getpid()

        def die_with_parent() -> None:
            # Between fork and exec: two system calls, nothing that could wait for a lock held by another thread.
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                # The parent may have ended just before.
                if os.getppid() != parent:
                    os._exit(1)

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

    async def keep_running(self, start_again: Callable[[], Awaitable[None]] | None = None) -> None:
        """Start the child again whenever it has exited, for ever: with `launch`, or as the caller says."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        started = loop.time()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self.is_running:
                continue
            if loop.time() - started > LAST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error("the %s has exited (%s); starting it again in %g s", self.name, self._end(), pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)
            started = loop.time()
            if start_again is None:
                self.launch()
            else:
                await start_again()

    def _end(self) -> str:
        code = self.exit_code
        # Ops people look for SIGKILL, which is how the system ends who takes too much memory.
        return signal.Signals(-code).name if code is not None and code < 0 else f"code {code}"
