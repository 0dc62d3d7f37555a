"""Keeps what was learned about the runs of each version across restarts."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from gateway.runtime.learned import LearnedState, learned_file, write_learned
from gateway.runtime.registry import Registry
from gateway.types import ModelKey

logger = logging.getLogger(__name__)

WRITE_SECONDS = 30.0
"""Between two looks at whether there is something new to write."""


class Learning:
    """Writes the learned state of every loaded version now and then, and when the gateway stops."""

    def __init__(self, registry: Registry, folder: Path, every: float = WRITE_SECONDS) -> None:
        """`folder` is made when it is needed; `every` is in seconds."""
        self._registry = registry
        self._folder = folder
        self._every = every
        self._written: dict[ModelKey, LearnedState] = {}

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            await self.write()

    async def write(self) -> None:
        """Write what changed. A disk that does not take it costs what was learned, and a line in the log."""
        written = self._written
        self._written = {}
        for version in self._registry:
            if version.warm is None or version.spare is not None:
                # How it is to be run is not known yet.
                continue
            # A copy made on the loop, which alone changes what it is a copy of; the file is written on a thread.
            state = self._written[version.key] = version.warm.state()
            if state.is_of_use and written.get(version.key) != state:
                await asyncio.to_thread(self._write, version.key, state)

    def _write(self, key: ModelKey, state: LearnedState) -> None:
        path = learned_file(self._folder, key)
        try:
            write_learned(path, state)
        except OSError as error:
            logger.warning("%s cannot be written, %s is measured anew at the next start: %s", path, key, error)
