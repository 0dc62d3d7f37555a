"""Changing a route: the one way in, for the command line and every other client of the admin API."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.errors import Conflict, InvalidRoute, NotFound
from gateway.routing import compile_route
from gateway.runtime.registry import Registry
from gateway.serving.route_table import RouteTable
from gateway.state.route_store import RouteStore, parse_document, revision_of
from gateway.types import JsonObject


class RouteEditor:
    """Validates a change against what is loaded here, then writes it if nobody else was faster."""

    def __init__(self, registry: Registry, table: RouteTable, store: RouteStore) -> None:
        self._registry = registry
        self._table = table
        self._store = store

    async def stored(self, name: str) -> tuple[int, JsonObject | None]:
        """Revision and document in the store: (0, None) without one, a None document if it is unreadable.

        Raises `NotFound` for a model that is not loaded.
        """
        raw = await self._raw(name)
        return revision_of(raw), parse_document(raw)

    async def put(self, name: str, document: JsonObject, *, expected: int, actor: str, reason: str) -> JsonObject:
        """Replace the route; the document as stored, with its new revision.

        Raises `InvalidRoute` naming the path in the document, `Conflict` if `expected` is not the stored revision.
        """
        raw = await self._raw(name)
        revision = revision_of(raw)
        if revision != expected:
            raise await self._conflict(name, expected)
        if document.get("revision", expected) != expected:
            raise InvalidRoute(f"revision: is set by the gateway; leave it out or keep {expected}")
        in_force = self._table.get(name)
        # A store that lost the document must not hand out a revision a second time.
        successor = max(revision, in_force.revision if in_force else 0) + 1
        document = {"name": name, **document, "revision": successor}
        route = compile_route(document, name=name, versions=self._registry.versions(name))
        try:
            await self._store.write(route.document(), replaces=raw, actor=actor, reason=reason)
        except Conflict:
            raise await self._conflict(name, expected) from None
        await self._table.refresh()
        return route.document()

    async def patch(self, name: str, patch: JsonObject, *, expected: int, actor: str, reason: str) -> JsonObject:
        """Change parts of the route by JSON merge patch (RFC 7396). Raises as `put` does."""
        _, document = await self.stored(name)
        if document is None:
            in_force = self._table.get(name)
            document = in_force.document() if in_force else {}
            document["revision"] = expected
        try:
            merged = _merge(document, patch)
        except RecursionError:
            raise InvalidRoute("document: nested deeper than any route") from None
        return await self.put(name, merged, expected=expected, actor=actor, reason=reason)

    async def _raw(self, name: str) -> bytes | None:
        if name not in self._registry.names:
            raise NotFound(f"no route {name!r}; routes: {', '.join(self._registry.names)}")
        return (await self._store.read([name]))[name]

    async def _conflict(self, name: str, expected: int) -> Conflict:
        revision, _ = await self.stored(name)
        message = f"route {name!r} is at revision {revision}, the change was made for revision {expected}"
        latest = await self._store.history(name, 1)
        if latest and latest[0].revision == revision:
            when = datetime.fromtimestamp(latest[0].changed_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            because = f": {latest[0].reason}" if latest[0].reason else ""
            message += f"; {latest[0].actor} changed it at {when}{because}"
        return Conflict(message)


def _merge(document: JsonObject, patch: JsonObject) -> JsonObject:
    merged = dict(document)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            current = merged.get(key)
            merged[key] = _merge(current if isinstance(current, dict) else {}, value)
        else:
            merged[key] = value
    return merged
