"""What long-running commands need: an end that is asked for, not suffered, and an interpreter for short waits."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys

import numpy as np

GIL_SWITCH_SECONDS = 2e-5
"""A thread that comes back from ONNX Runtime waits this long for the interpreter, instead of Python's 5 ms."""
GC_THRESHOLDS = (50_000, 20, 50)
"""Allocations before the youngest objects are looked at, and how many such looks before older ones are."""


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
