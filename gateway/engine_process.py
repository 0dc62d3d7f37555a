"""`gateway engine`: the process that owns the sessions, and the gateway's side of starting it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from gateway.errors import StartupError
from gateway.lifecycle import background, prepare_to_serve, stop_signals
from gateway.runtime.engine.channel import connect
from gateway.runtime.engine.server import Engine
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.session import choose_device
from gateway.runtime.warming import LEARNED_FOLDER
from gateway.serving.core_contest import CoreContests
from gateway.serving.learning import Learning
from gateway.settings import Settings
from gateway.state.process import ChildProcess
from gateway.state.sockets import socket_path
from gateway.wiring import make_loader, thread_budget

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60.0
"""Importing ONNX Runtime and finding the device; models are loaded later."""


def engine_socket(data_dir: Path) -> Path:
    """Where the engine of a data directory listens."""
    return socket_path(data_dir.resolve() / "engine" / "engine.sock")


async def run_engine(settings: Settings) -> None:
    """Run what workers send until SIGINT or SIGTERM. Raises `StartupError` if the device cannot be had."""
    prepare_to_serve()
    stop = stop_signals()
    device = choose_device(settings.device)
    with ThreadPoolExecutor(thread_budget(settings), "onnx") as executor:
        scheduler = Scheduler(thread_budget(settings))
        engine = Engine(settings.models, partial(make_loader, settings, device, executor, scheduler))
        learning = Learning(engine.registry, settings.data_dir / LEARNED_FOLDER)
        contests = CoreContests(engine.registry)
        with engine.listening(engine_socket(settings.data_dir)):
            logger.info("the engine listens, device %s", device)
            async with background(learning.run(), contests.run()):
                await stop.wait()
        await learning.write()


class EngineProcess(ChildProcess):
    """The engine as a child."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str]) -> None:
        """`environment` holds the engine's settings."""
        super().__init__("engine process", [sys.executable, "-m", "gateway", "engine"], environment)
        self.socket = engine_socket(data_dir)

    def start(self) -> None:
        """Start the child and block until it listens. Raises `StartupError` if it does not."""
        self.launch()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.is_running:
            try:
                connect(self.socket).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        self.stop()
        raise StartupError("the engine process did not start; what it said stands above")
