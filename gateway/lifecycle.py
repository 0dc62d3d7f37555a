"""What the long-running commands need: an end that is asked for, not suffered, a folder that is theirs alone, and an
interpreter for short waits.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.errors import StartupError
from gateway.serving.summary import Summary
from gateway.settings import Settings

logger = logging.getLogger(__name__)

CANCEL_AGAIN_SECONDS = 0.2
LOCK_FILE = "lock"
GIL_SWITCH_SECONDS = 2e-5
"""A thread that comes back from ONNX Runtime waits this long for the interpreter, instead of Python's 5 ms."""
GC_THRESHOLDS = (50_000, 20, 50)
"""Allocations before the youngest objects are looked at, and how many such looks before older ones are."""


@dataclass(frozen=True, slots=True)
class Started:
    """What the terminal is told once all ports answer."""

    summary: Summary
    public_url: str
    ops_url: str
    grpc_address: str | None
    store: str
    settings: Settings


def stop_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set; call it on the main thread's loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


def prepare_to_serve() -> None:
    """Set the interpreter up for a process that answers requests."""
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    # The decoder looks for numbers that became infinite; numpy need not warn of them as well.
    np.seterr(over="ignore")
    # A request leaves no cycles behind, so hunting for them among its objects every few requests finds nothing.
    gc.set_threshold(*GC_THRESHOLDS)


@asynccontextmanager
async def background(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run them until the end. One that fails is a bug: it is logged, and the process stops rather than limps on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task.add_done_callback(_stop_on_failure)
    try:
        yield
    finally:
        pending = set(tasks)
        while pending:
            # More than once: on Python 3.11 `asyncio.wait_for`, which redis-py waits with, loses a cancellation that
            # comes together with the result (CPython issue 86296).
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


def _stop_on_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("a background task failed; stopping", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data directory, which is made if it is not there. Raises `StartupError` if another gateway does."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK_FILE).open("w")
    except OSError as error:
        raise StartupError(f"data_dir {data_dir}: {error.strerror}; name a writable folder with --data-dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartupError(
                f"data_dir {data_dir} is in use by another gateway; stop it, or name another with --data-dir"
            ) from error
        yield
