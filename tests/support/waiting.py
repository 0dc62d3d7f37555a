"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.005


def wait_until(condition: Callable[[], T], seconds: float = 15.0) -> T:
    """The first true value of `condition`; fails the test if there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(POLL_SECONDS)
    return value


async def wait_until_async(condition: Callable[[], T], seconds: float = 15.0) -> T:
    """As `wait_until`, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        await asyncio.sleep(POLL_SECONDS)
    return value


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel until it is over: redis-py on Python 3.11 now and then loses a cancellation (CPython issue 86296)."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
