"""Notices what changes in the model repository, and has it followed.

The rule of this file: only a change counts. What was unloaded on request, or failed, is left alone until its files
change. And it counts when it is over: a folder that is still being written looks different every time, so a model is
followed when two looks in a row saw the same.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TypeAlias

from gateway.runtime.manifest import MODEL_CONFIG_FILE
from gateway.runtime.registry import Registry
from gateway.runtime.repository import Stamp, stamps
from gateway.serving.model_control import ModelControl
from gateway.types import ModelKey

logger = logging.getLogger(__name__)

Look: TypeAlias = dict[ModelKey, Stamp]
"""Of each version, and of each `model.toml` under its name."""


class ModelPoll:
    """Looks at the repository again and again."""

    def __init__(self, models: Path, registry: Registry, control: ModelControl) -> None:
        self._models = models
        self._registry = registry
        self._control = control
        self._followed: Look | None = None
        """What has been acted upon."""
        self._last: Look = {}
        self._is_readable = True

    async def run(self, seconds: float) -> None:
        """Look every so many seconds, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(seconds)

    async def look(self) -> None:
        """Look once, and follow the models whose change is over."""
        try:
            seen = await asyncio.to_thread(stamps, self._models)
        except OSError as error:
            self._complain(f"cannot be read: {error}")
            return
        if not seen and self._registry.names:
            # Most likely a file system that is not mounted; it is no reason to stop serving.
            self._complain("is empty")
            return
        self._is_readable = True
        followed = self._followed = self._at_start(seen) if self._followed is None else self._followed
        changed = {key for key in seen.keys() | followed.keys() if seen.get(key) != followed.get(key)}
        unsettled = {key.name for key in seen.keys() | self._last.keys() if seen.get(key) != self._last.get(key)}
        self._last = seen
        for name in sorted(({key.name for key in changed} - unsettled) | self._control.released()):
            mine = {key for key in changed if key.name == name}
            await self._control.follow(name, {key.version for key in mine})
            for key in mine:
                followed.pop(key, None)
                if key in seen:
                    followed[key] = seen[key]

    def _at_start(self, seen: Look) -> Look:
        """What the start has acted upon: what it loaded, as it was then, and what it refused."""
        known = {version.key: version.stamp for version in self._registry}
        given = {key for key in seen if key in self._registry.refused or key.version == MODEL_CONFIG_FILE}
        return known | {key: seen[key] for key in given}

    def _complain(self, what: str) -> None:
        if self._is_readable:
            logger.warning("the model repository %s %s; what is loaded serves on", self._models, what)
        self._is_readable = False
