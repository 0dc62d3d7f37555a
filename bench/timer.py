"""A timer that keeps its time. Event loops wait in whole milliseconds, which is longer than a prediction takes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_EXPIRATIONS_BYTES = 8


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """timerfd_create(2) on the monotonic clock, as a file descriptor that the loop watches."""

    def __init__(self, on_time: Callable[[], None]) -> None:
        """`on_time` is called on the running loop at or soon after each time set."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._on_time = on_time
        self._setting = _Itimerspec()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._expired)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def set(self, when: float) -> None:
        """Expire once at `time.monotonic()` == `when`; a time that has passed expires at once."""
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(max(1, int(when * 1e9)), 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._setting), None)

    def _expired(self) -> None:
        try:
            os.read(self._fd, _EXPIRATIONS_BYTES)
        except BlockingIOError:
            return  # Set again between the expiry and now.
        self._on_time()
