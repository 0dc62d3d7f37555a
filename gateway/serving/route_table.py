"""The routes in force in this process.

Redis holds the truth, this table what was last found good in it. A document that does not compile, a document that has
disappeared, and a store that does not answer leave the last good rules in force and are told by `problems`. The
good rules are also kept in a file, so that a gateway which starts while the store is down knows them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import orjson

from gateway.errors import InvalidRoute, StoreUnavailable
from gateway.prediction_id import name_hash
from gateway.routing import Route, compile_route, default_route
from gateway.runtime.registry import ModelVersion, Registry
from gateway.state.route_store import RouteStore
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
HISTORY_FOR_NAMES = 1_000
"""Audit entries read at start to learn the names of variants that predictions may still be labelled for."""


class RouteTable:
    """Compiled routes by model name, in force from `begin` on and kept current by `watch`."""

    def __init__(self, registry: Registry, store: RouteStore, snapshot: Path) -> None:
        self._registry = registry
        self._store = store
        self._snapshot = snapshot
        self._routes: dict[str, Route] = {}
        self._aliases: dict[str, str] = {}
        self._seen: dict[str, bytes | None] = {}
        self._variant_names: dict[bytes, str] = {}
        self.problems: dict[str, str] = {}
        """By model: why the stored document is not in force."""
        self._refreshing = asyncio.Lock()
        self.is_known = False
        """Whether the rules were read at least once, from the store or from the snapshot."""

    def begin(self) -> None:
        """With the models loaded, put the defaults and then the last good rules in force."""
        for name in self._registry.names:
            self._put_default(name)
        self._load_snapshot(self._routes.keys())

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def get(self, name: str) -> Route | None:
        """The route in force for a model or an alias, or None for a model that is not loaded."""
        route = self._routes.get(name)
        if route is None and name in self._aliases:
            route = self._routes.get(self._aliases[name])
        return route

    def model_of(self, name: str) -> str:
        """The model that an alias stands for; any other name stands for itself."""
        return name if name in self._routes else self._aliases.get(name, name)

    def compile(self, name: str, document: Any) -> Route:
        """Compile a document against what is loaded here. Raises `InvalidRoute`."""
        taken = {alias: f"an alias of route {owner!r}" for alias, owner in self._aliases.items() if owner != name}
        taken |= dict.fromkeys(self._registry.all_names, "a model")
        return compile_route(document, name=name, versions=self._registry.versions(name), taken=taken)

    def leading(self, name: str) -> ModelVersion:
        """The version that takes most of a model's traffic. Raises as `Registry.get` does."""
        route = self.get(name)
        if route is None:
            return self._registry.latest(name)
        return self._registry.get(route.name, max(route.variants, key=lambda variant: variant.weight).version)

    def variant_name(self, digest: bytes) -> str:
        """The variant that a prediction id names by its hash; the hash itself if no such variant is remembered."""
        return self._variant_names.get(digest) or f"#{digest.hex()}"

    async def watch(self, poll_seconds: float) -> None:
        """Follow the store for ever."""
        is_reachable = True
        while True:
            try:
                for name in self._registry.names:
                    await self._learn_variant_names(name)
                async with aclosing(self._store.changes(poll_seconds)) as changes:
                    async for _ in changes:
                        await self.refresh()
                        if not is_reachable:
                            logger.info("the store answers again; routes are current")
                        is_reachable = True
            except StoreUnavailable as error:
                if is_reachable:
                    logger.warning("%s; the last good routes stay in force", error)
                is_reachable = False
                await asyncio.sleep(RETRY_SECONDS)

    async def refresh(self) -> None:
        """Read every route once and put what changed in force.

        One reader at a time: what is read later must be applied later.
        """
        async with self._refreshing:
            self._apply_changes(await self._store.read(self._registry.names))
            self.is_known = True

    async def change_versions(self, name: str, change: Callable[[], None]) -> None:
        """Run `change`, which loads or unloads versions of a model, and put the route that follows in force.

        Both happen in one turn of the loop, so that no request meets the one without the other, and after a look into
        the store, so that `change` decides by the rules of now. What it raises leaves everything as it was.
        """
        async with self._refreshing:
            stored = await self._look(name)
            self._apply_changes({known: raw for known, raw in stored.items() if known in self._routes})
            change()
            self._follow(name, stored)
            self._look_again()

    async def named_versions(self, names: Collection[str]) -> dict[str, set[str]]:
        """By model, the versions that its stored route names, in force or not.

        Where no route is in force yet, those of the last good one too.
        """
        try:
            stored = await self._store.read(list(names))
        except StoreUnavailable:
            stored = {}
        named = {name: _versions_in(stored.get(name)) for name in names}
        good = self._read_snapshot() or {}
        for name in named.keys() - self._routes.keys():
            named[name] |= _versions_in(orjson.dumps(good.get(name)))
        return named

    async def _look(self, name: str) -> dict[str, bytes | None]:
        """The stored document; nothing if the store does not answer."""
        try:
            if name not in self._routes:
                await self._learn_variant_names(name)
            return await self._store.read([name])
        except StoreUnavailable as error:
            logger.warning("%s; the last good route of %s stays in force", error, name)
            return {}

    def _follow(self, name: str, stored: Mapping[str, bytes | None]) -> None:
        """The route of a model whose versions have just changed."""
        # A document may name a version that was not loaded before: look at it again, now or when the store answers.
        self._seen.pop(name, None)
        if name not in self._registry.names:
            self._routes.pop(name, None)
            self._put_aliases(name, ())
            self.problems.pop(name, None)
            return
        route = self._routes.get(name)
        if route is None:
            self._put_default(name)
            self._load_snapshot({name})
        elif route.revision == 0:
            self._put_default(name)
        self._apply_changes(stored)

    def _apply_changes(self, stored: Mapping[str, bytes | None]) -> None:
        changed = [name for name, raw in stored.items() if name not in self._seen or self._seen[name] != raw]
        aliases = self._aliases
        for name in changed:
            self._apply(name, stored[name])
        if self._aliases != aliases:
            self._look_again()
        if changed:
            self._save_snapshot()

    def _look_again(self) -> None:
        """At what was refused: the name that an alias wanted may be free by now."""
        for name in [name for name in self.problems if name in self._seen]:
            self._apply(name, self._seen[name])

    def _apply(self, name: str, raw: bytes | None) -> None:
        self._seen[name] = raw
        try:
            route = self._compile(name, raw)
        except InvalidRoute as error:
            self.problems[name] = error.message
            logger.error("route %s: %s; revision %d stays in force", name, error, self._routes[name].revision)
            return
        self.problems.pop(name, None)
        if route != self._routes[name]:
            logger.info("route %s: revision %d is in force", name, route.revision)
        self._put(route)

    def _compile(self, name: str, raw: bytes | None) -> Route:
        if raw is None:
            if self._routes[name].revision == 0:
                return self._routes[name]
            # Falling back to the default would send all traffic to the newest version because a key was lost.
            raise InvalidRoute("the document has disappeared from the store")
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise InvalidRoute(f"not JSON: {error}") from error
        return self.compile(name, document)

    def _put_default(self, name: str) -> None:
        self._put(default_route(name, self._registry.latest(name).key.version))

    def _put(self, route: Route) -> None:
        self._routes[route.name] = route
        self._put_aliases(route.name, route.aliases)
        self._variant_names.update((name_hash(variant.name), variant.name) for variant in route.variants)

    def _put_aliases(self, name: str, aliases: Iterable[str]) -> None:
        others = {alias: owner for alias, owner in self._aliases.items() if owner != name}
        self._aliases = others | dict.fromkeys(aliases, name)

    async def _learn_variant_names(self, name: str) -> None:
        for entry in await self._store.history(name, HISTORY_FOR_NAMES):
            with suppress(KeyError, TypeError):
                names = [str(variant["name"]) for variant in entry.document["variants"]]
                self._variant_names.update((name_hash(variant), variant) for variant in names)

    def _load_snapshot(self, names: Collection[str]) -> None:
        documents = self._read_snapshot()
        if documents is None:
            return
        for name in documents.keys() & names:
            try:
                self._put(self.compile(name, documents[name]))
            except InvalidRoute as error:
                logger.warning("%s: route %s: %s", self._snapshot, name, error)
        self.is_known = True

    def _read_snapshot(self) -> JsonObject | None:
        """The last good documents by model; None if there is no such file, or no sense in it."""
        try:
            documents = orjson.loads(self._snapshot.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, orjson.JSONDecodeError) as error:
            logger.warning("%s: %s; starting without the last good routes", self._snapshot, error)
            return None
        if not isinstance(documents, dict):
            logger.warning("%s: expected an object; starting without the last good routes", self._snapshot)
            return None
        return documents

    def _save_snapshot(self) -> None:
        documents = {route.name: route.document() for route in self._routes.values() if route.revision > 0}
        temporary = self._snapshot.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(orjson.dumps(documents, option=orjson.OPT_INDENT_2))
            temporary.replace(self._snapshot)
        except OSError as error:
            logger.warning("%s: %s; a restart without the store would not know these routes", self._snapshot, error)


def _versions_in(raw: bytes | None) -> set[str]:
    """What a document names, which need not be a route."""
    with suppress(orjson.JSONDecodeError, KeyError, TypeError):
        return {str(variant["version"]) for variant in orjson.loads(raw or b"{}")["variants"]}
    return set()
