"""Loading and unloading while the gateway serves (Triton's "Model Repository Extension"): one change at a time.

What takes long, reading and warming up, happens on a thread and changes nothing. What changes, changes in one turn of
the event loop: a version takes requests only when it is warm, and is freed only when it takes none.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from gateway.errors import InvalidRequest, NotFound, StartupError
from gateway.runtime.manifest import MODEL_FILE
from gateway.runtime.memory import give_back
from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import survey, usable
from gateway.serving.dataplane import DataPlane
from gateway.serving.route_table import RouteTable
from gateway.types import JsonObject, ModelKey

logger = logging.getLogger(__name__)

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
NOT_LOADED = "not loaded; a load request of its model loads it"


class ModelControl:
    """The one way to change what is loaded once the gateway has started."""

    def __init__(self, models: Path, loader: Loader, plane: DataPlane, routes: RouteTable) -> None:
        self._models = models
        self._loader = loader
        self._plane = plane
        self._registry = plane.registry
        self._routes = routes
        self._changing = asyncio.Lock()

    async def index(self, *, only_ready: bool = False) -> list[JsonObject]:
        """Every version on disk or loaded: `name`, `version`, `state`, and the reason where it is not ready."""
        on_disk = await asyncio.to_thread(survey, self._models)
        problems = {
            key: str(found) if isinstance(found, StartupError) else NOT_LOADED for key, found in on_disk.items()
        }
        problems |= self._registry.refused
        loaded = dict.fromkeys((version.key for version in self._registry), "")
        states = loaded if only_ready else problems | loaded
        return [
            {"name": key.name, "version": key.version, "state": UNAVAILABLE if reason else READY, "reason": reason}
            for key, reason in sorted(states.items(), key=lambda item: _in_order(item[0]))
        ]

    async def load(self, name: str, version: str | None = None) -> list[str]:
        """Load what is on disk of a model and not loaded, or one version of it; the versions loaded afterwards.

        All or nothing: raises `InvalidRequest` that says which file is wrong, and what was loaded serves on as before.
        Raises `NotFound` if the repository holds no such version. Whoever comes meanwhile waits for its turn.
        """
        async with self._changing:
            if (owner := self._routes.model_of(name)) != name:
                raise InvalidRequest(f"{name!r} is an alias of route {owner!r}: take it out of that route first")
            loaded = {known.key for known in self._registry}
            new = await asyncio.to_thread(self._load_new, name, version, loaded)
            await self._routes.change_versions(name, lambda: self._add(new))
            for added in new:
                logger.info("loaded %s", added.key)
            return self._registry.versions(name)

    async def unload(self, name: str, version: str | None = None) -> list[str]:
        """Unload a model, or one version of it, and return when its memory is free; the versions that are left.

        New requests are refused from the next turn of the loop on, those in flight are answered first. Raises
        `InvalidRequest` naming the route and the variant that needs a version, `NotFound` for one that is not there. A
        version that was refused is no longer waited for.
        """
        async with self._changing:
            removed: list[ModelVersion] = []
            await self._routes.change_versions(name, lambda: removed.extend(self._remove(name, version)))
            await asyncio.gather(*(gone.close() for gone in removed))
            await asyncio.to_thread(give_back)
            for gone in removed:
                logger.info("unloaded %s", gone.key)
            return self._registry.versions(name)

    def _load_new(self, name: str, version: str | None, loaded: set[ModelKey]) -> list[ModelVersion]:
        """On a thread: versions that no request can reach yet."""
        on_disk = survey(self._models)
        wanted = {key for key in on_disk if key.name == name and version in (None, key.version)}
        if not wanted:
            raise NotFound(f"the model repository holds no {name}/{version or '<version>'}/{MODEL_FILE}")
        new: list[ModelVersion] = []
        for key in sorted(wanted - loaded, key=_in_order):
            try:
                new.append(self._loader.load(usable(on_disk[key])))
            except (StartupError, OSError) as error:
                for unused in new:
                    unused.session.close()
                raise InvalidRequest(f"nothing was loaded, what serves goes on as before: {error}") from error
        return new

    def _add(self, new: list[ModelVersion]) -> None:
        for version in new:
            self._registry.add(version)

    def _remove(self, name: str, version: str | None) -> list[ModelVersion]:
        loaded = [number for number in self._registry.versions(name) if version in (None, number)]
        refused = [key for key in self._registry.refused if key.name == name and version in (None, key.version)]
        if not loaded and not refused:
            raise self._registry.missing(name, version)
        self._refuse_if_routed(name, loaded)
        for key in refused:
            del self._registry.refused[key]
        removed = [self._registry.remove(ModelKey(name, number)) for number in loaded]
        for gone in removed:
            self._plane.forget(gone.key)
        return removed

    def _refuse_if_routed(self, name: str, versions: list[str]) -> None:
        """A default route follows what is loaded; one that somebody wrote means what it says."""
        route = self._routes.get(name)
        if route is None or route.revision == 0:
            return
        for variant in route.variants:
            if variant.version in versions:
                raise InvalidRequest(
                    f"route {name!r} (revision {route.revision}) has version {variant.version} as variant "
                    f"{variant.name!r}: take that variant out of it first, then unload the version"
                )


def _in_order(key: ModelKey) -> tuple[str, int, str]:
    """By name, and by version as a number, which a folder on disk need not be."""
    return key.name, len(key.version), key.version
