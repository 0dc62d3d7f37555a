"""What both long-running commands need: an end that is asked for, not suffered."""

from __future__ import annotations

import asyncio
import signal


def stop_signals() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set; call it on the main thread's loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop
