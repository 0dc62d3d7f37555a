"""Loading and unloading while the gateway serves (Triton's "Model Repository Extension"): one change at a time.

What takes long, reading and warming up, happens on a thread and changes nothing. What changes, changes in one turn of
the event loop: a version takes requests only when it is warm, and is freed only when it takes none. A version that
replaces another does so in the same turn, so that there is always one of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gateway.errors import InsufficientMemory, InvalidRequest, NotEnoughMemory, NotFound, StartupError
from gateway.runtime.manifest import MODEL_CONFIG_FILE, MODEL_FILE
from gateway.runtime.memory import give_back
from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import VersionFolder, selected, survey, usable
from gateway.runtime.trust import digest_of
from gateway.serving.dataplane import DataPlane
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import LOAD_FAILURES, GatewayMetrics
from gateway.types import JsonObject, ModelKey

logger = logging.getLogger(__name__)

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
NOT_LOADED = "not loaded; a load request of its model loads it"
LEFT_OUT = f"not loaded; [versions] in {MODEL_CONFIG_FILE} leaves it out"

Found: TypeAlias = dict[str, VersionFolder | StartupError]
"""What lies on disk of one model, by version."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """One model on disk."""

    found: Found
    chosen: set[str]
    """By `model.toml`; and those with which something is wrong, so that it is said."""
    named: set[str]
    """By a route."""

    @property
    def wanted(self) -> set[str]:
        """Versions to be loaded."""
        return self.chosen | (self.named & self.found.keys())

    def is_complete(self, loaded: Collection[str]) -> bool:
        """Whether everything is loaded that can be wanted; nothing at all is more likely a mistake."""
        sound = {number for number in self.wanted if isinstance(self.found[number], VersionFolder)}
        return bool(self.wanted) and sound <= set(loaded)


class ModelControl:
    """The one way to change what is loaded once the gateway has started."""

    def __init__(
        self, models: Path, loader: Loader, plane: DataPlane, routes: RouteTable, metrics: GatewayMetrics
    ) -> None:
        self._models = models
        self._loader = loader
        self._plane = plane
        self._registry = plane.registry
        self._routes = routes
        self._metrics = metrics
        self._changing = asyncio.Lock()
        # Always the same one: of what a thread frees, the C library keeps some for this thread's next allocations.
        self._thread = ThreadPoolExecutor(1, "models")
        self._problems: dict[ModelKey, str] = {}
        """What is wrong with files that were to be loaded, since the start."""
        self._withdrawn: set[ModelKey] = set()
        """Unloaded on request: not loaded again unless asked for, or changed on disk."""
        self._kept: set[ModelKey] = set()
        """To be unloaded as soon as no route names them."""

    async def index(self, *, only_ready: bool = False) -> list[JsonObject]:
        """Every version on disk or loaded: `name`, `version`, `state`, and the reason where it is not ready.

        A version that is ready has a reason if what lies on disk is something else by now.
        """
        on_disk = await asyncio.to_thread(survey, self._models)
        chosen = {folder.key for folder in selected(_usable(on_disk.values()), {})}
        reasons = {key: NOT_LOADED if key in chosen else LEFT_OUT for key in on_disk}
        reasons |= {key: str(found) for key, found in on_disk.items() if isinstance(found, StartupError)}
        reasons |= self._registry.refused
        reasons |= {key: problem for key, problem in self._problems.items() if key in on_disk}
        loaded = {version.key for version in self._registry}
        shown = loaded if only_ready else loaded | reasons.keys()
        return [
            {
                "name": key.name,
                "version": key.version,
                "state": READY if key in loaded else UNAVAILABLE,
                "reason": self._problems.get(key, "") if key in loaded else reasons[key],
            }
            for key in sorted(shown, key=_in_order)
        ]

    async def load(self, name: str, version: str | None = None) -> list[str]:
        """Load what is on disk of a model and not loaded, or one version of it; the versions loaded afterwards.

        What `model.toml` leaves out is not loaded, and is unloaded, where no route names it, once the others are.

        All or nothing: raises `InvalidRequest` that says which file is wrong, or `InsufficientMemory`, and what was
        loaded serves on as before. Raises `NotFound` if the repository holds no such version. Whoever comes meanwhile
        waits for its turn; whoever leaves gets what was asked for all the same.
        """
        return await asyncio.shield(self._load_wanted(name, version))

    async def unload(self, name: str, version: str | None = None) -> list[str]:
        """Unload a model, or one version of it, and return when its memory is free; the versions that are left.

        New requests are refused from the next turn of the loop on, those in flight are answered first. Raises
        `InvalidRequest` naming the route and the variant that needs a version, `NotFound` for one that is not there. A
        version that was refused is no longer waited for.
        """
        return await asyncio.shield(self._unload_named(name, version))

    async def follow(self, name: str, changed: Collection[str]) -> None:
        """Do what a change on disk asks for.

        `changed` are the versions that came, went or have other files now, and `model.toml` if that did.

        Each version by itself: what loads takes requests, what does not is told by log, metric and index, and is tried
        again when it changes again. What went is unloaded unless a route names it, and what `model.toml` leaves out as
        well, once everything that it chooses is loaded.
        """
        async with self._changing:
            shelf, loaded = await self._shelf(name), self._loaded(name)
            new = []
            for number in sorted(shelf.wanted, key=_number):
                if number in changed or self._is_due(ModelKey(name, number), MODEL_CONFIG_FILE in changed):
                    # Whatever lies in the repository, it must not end the poll.
                    with suppress(Exception):
                        new += await self._load_one(name, number, shelf)
            serving = loaded.keys() | {version.key.version for version in new}
            surplus = loaded.keys() - shelf.found.keys()
            if shelf.is_complete(serving):
                surplus |= loaded.keys() - shelf.chosen
            await self._exchange(name, new, surplus, shelf.named)
            self._forget_absent(name, shelf.found)

    def released(self) -> set[str]:
        """Models that have a version which only a route kept, and no longer does."""
        return {key.name for key in self._kept if self._variant_of(key) is None}

    async def _load_wanted(self, name: str, version: str | None) -> list[str]:
        async with self._changing:
            if (owner := self._routes.model_of(name)) != name:
                raise InvalidRequest(f"{name!r} is an alias of route {owner!r}: take it out of that route first")
            shelf = await self._shelf(name)
            if not (shelf.found if version is None else version in shelf.found):
                raise NotFound(f"the model repository holds no {name}/{version or '<version>'}/{MODEL_FILE}")
            wanted = shelf.wanted if version is None else {version} & shelf.wanted
            if not wanted:
                raise InvalidRequest(f"{name}/{version or '<version>'} is {LEFT_OUT}; change that first")
            new = await self._load_all(name, shelf, wanted)
            considered = shelf.found.keys() if version is None else set()
            surplus = (considered | {key.version for key in self._kept if key.name == name}) - shelf.chosen
            await self._exchange(name, new, surplus, shelf.named)
            return self._registry.versions(name)

    async def _unload_named(self, name: str, version: str | None) -> list[str]:
        async with self._changing:
            removed: list[ModelVersion] = []
            await self._routes.change_versions(name, lambda: removed.extend(self._remove(name, version)))
            await self._free(removed)
            return self._registry.versions(name)

    async def _shelf(self, name: str) -> Shelf:
        on_disk = await asyncio.to_thread(survey, self._models)
        found = {key.version: version for key, version in on_disk.items() if key.name == name}
        named = await self._routes.named_versions([name])
        chosen = {folder.key.version for folder in selected(_usable(found.values()), {})}
        broken = {number for number, what in found.items() if isinstance(what, StartupError)}
        return Shelf(found, chosen | broken, named[name])

    def _loaded(self, name: str) -> dict[str, ModelVersion]:
        return {version.key.version: version for version in self._registry if version.key.name == name}

    def _is_due(self, key: ModelKey, is_reconfigured: bool) -> bool:
        """Whether a version whose files did not change may have to be loaded."""
        if key in self._withdrawn:
            return False
        is_known = key in self._problems or key in self._registry.refused or key.version in self._loaded(key.name)
        return is_reconfigured or not is_known

    async def _load_all(self, name: str, shelf: Shelf, wanted: Collection[str]) -> list[ModelVersion]:
        """Versions that no request can reach yet; nothing stays loaded if one of them cannot be."""
        new: list[ModelVersion] = []
        for number in sorted(wanted, key=_number):
            try:
                new += await self._load_one(name, number, shelf)
            except Exception as error:
                for unused in new:
                    unused.free()
                if not isinstance(error, StartupError | OSError):
                    raise
                kind = InsufficientMemory if isinstance(error, NotEnoughMemory) else InvalidRequest
                raise kind(f"nothing was loaded, what serves goes on as before: {error}") from error
        return new

    async def _load_one(self, name: str, number: str, shelf: Shelf) -> list[ModelVersion]:
        """The version, nothing if it serves already. Tells everybody what is wrong with it, and raises it."""
        key, serving = ModelKey(name, number), self._loaded(name).get(number)
        try:
            loop = asyncio.get_running_loop()
            new = await loop.run_in_executor(self._thread, self._read, shelf.found[number], serving)
        except Exception as error:
            is_bug = not isinstance(error, StartupError | OSError)
            logger.error("%s was not loaded, what serves goes on as before: %s", key, error, exc_info=is_bug)
            self._problems[key] = str(error)
            self._metrics.count(LOAD_FAILURES, *key)
            raise
        self._problems.pop(key, None)
        return new

    def _read(self, found: VersionFolder | StartupError, serving: ModelVersion | None) -> list[ModelVersion]:
        """On a thread: what lies on disk, if it is not what serves. Raises `StartupError` if it cannot be loaded."""
        folder = usable(found)
        if serving is None:
            return [self._loader.load(folder)]
        if folder.stamp() != serving.stamp and digest_of(folder.folder) != serving.digest:
            raise StartupError(
                f"{folder.folder}: the files are not those that serve as {folder.key}, which goes on as it was loaded; "
                "a version does not change: put them into the next one"
            )
        return []

    async def _exchange(
        self, name: str, new: list[ModelVersion], surplus: Collection[str], named: Collection[str]
    ) -> None:
        """Let new versions take requests and take out `surplus`, but for what a route names, in the same turn."""
        removed: list[ModelVersion] = []

        def change() -> None:
            for version in new:
                self._registry.add(version)
                self._withdrawn.discard(version.key)
                logger.info("loaded %s", version.key)
            keys = {ModelKey(name, number) for number in surplus} & {version.key for version in self._registry}
            kept = {key for key in keys if key.version in named or self._variant_of(key) is not None}
            for key in kept - self._kept:
                logger.warning("%s is to be unloaded and stays, as route %s names it", key, name)
            self._kept = {key for key in self._kept if key.name != name} | kept
            removed.extend(self._take_out(key) for key in keys - kept)

        await self._routes.change_versions(name, change)
        await self._free(removed)

    async def _free(self, removed: list[ModelVersion]) -> None:
        if not removed:
            return
        await asyncio.gather(*(gone.close() for gone in removed))
        await asyncio.to_thread(give_back)
        for gone in removed:
            logger.info("unloaded %s", gone.key)

    def _remove(self, name: str, version: str | None) -> list[ModelVersion]:
        loaded = [number for number in self._registry.versions(name) if version in (None, number)]
        refused = [key for key in self._registry.refused if key.name == name and version in (None, key.version)]
        if not loaded and not refused:
            raise self._registry.missing(name, version)
        for number in loaded:
            self._refuse_if_routed(ModelKey(name, number))
        self._withdrawn |= {*refused, *(ModelKey(name, number) for number in loaded)}
        for key in refused:
            del self._registry.refused[key]
        return [self._take_out(ModelKey(name, number)) for number in loaded]

    def _take_out(self, key: ModelKey) -> ModelVersion:
        self._plane.forget(key)
        self._kept.discard(key)
        return self._registry.remove(key)

    def _forget_absent(self, name: str, found: Found) -> None:
        """Of what is no longer on disk nothing is remembered, and nobody waits for it."""
        for known in (self._problems, self._registry.refused):
            for key in [key for key in known if key.name == name and key.version not in found]:
                del known[key]
        self._withdrawn = {key for key in self._withdrawn if key.name != name or key.version in found}

    def _variant_of(self, key: ModelKey) -> str | None:
        """Which one needs a version. A default route follows what is loaded; a written one means what it says."""
        route = self._routes.get(key.name)
        if route is None or route.revision == 0:
            return None
        return next((variant.name for variant in route.variants if variant.version == key.version), None)

    def _refuse_if_routed(self, key: ModelKey) -> None:
        variant, route = self._variant_of(key), self._routes.get(key.name)
        if variant is not None and route is not None:
            raise InvalidRequest(
                f"route {key.name!r} (revision {route.revision}) has version {key.version} as variant "
                f"{variant!r}: take that variant out of it first, then unload the version"
            )


def _usable(found: Iterable[VersionFolder | StartupError]) -> list[VersionFolder]:
    return [version for version in found if isinstance(version, VersionFolder)]


def _in_order(key: ModelKey) -> tuple[str, int, str]:
    """By name, and by version as a number."""
    return key.name, *_number(key.version)


def _number(version: str) -> tuple[int, str]:
    """In the order of numbers, which a folder on disk need not be."""
    return len(version), version
