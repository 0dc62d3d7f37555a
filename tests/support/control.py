"""Loading and unloading over a data plane in this process: what tests of it ask and look at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import orjson

from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import VersionFolder
from gateway.state import keys
from gateway.state.client import Store
from gateway.types import Array
from tests.support.planes import Plane
from tests.support.waiting import wait_until_async

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
ROW: dict[str, Array] = {"x": np.ones((1, 3), np.float32)}


@dataclass(frozen=True, slots=True)
class GatedLoader(Loader):
    """Loads when it is let."""

    started: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def load(self, folder: VersionFolder) -> ModelVersion:
        """As the real one, once the gate is open."""
        self.started.set()
        assert self.gate.wait(30.0)
        return Loader.load(self, folder)


async def answered_by(plane: Plane, version: str | None = None, name: str = "m") -> str:
    """The version that answers a request for one, or for a model."""
    return (await plane.predict(name, ROW, version)).key.version


def document(version: str = "1", revision: int = 1, **more: Any) -> dict[str, Any]:
    """A route that sends all of model `m` to one version."""
    variants = [{"name": "stable", "version": version, "weight": 100}]
    return {"name": "m", "revision": revision, "variants": variants, **more}


async def put(store: Store, **more: Any) -> None:
    """Store a route as somebody with redis-cli would."""
    await store.set(keys.route("m"), orjson.dumps(document(**more)))


async def states(plane: Plane, *, only_ready: bool = False) -> dict[str, tuple[str, str]]:
    """State and reason of each version in the index."""
    index = await plane.control.index(only_ready=only_ready)
    return {f"{entry['name']}/{entry['version']}": (entry["state"], entry["reason"]) for entry in index}


async def more_than(counts: dict[str, int], before: dict[str, int]) -> None:
    """Each of the counts has grown since."""
    await wait_until_async(lambda: all(counts[label] > before[label] for label in counts))
