"""Changing a route: the one way in, for the command line and every other client of the admin API."""

from __future__ import annotations

from typing import NamedTuple

from gateway.errors import Conflict, InvalidRoute, NotFound
from gateway.routing import Route
from gateway.runtime.registry import Registry
from gateway.serving.route_history import REMEMBERED, RouteHistory, is_same
from gateway.serving.route_table import RouteTable
from gateway.state.route_store import RouteStore, parse_document, revision_of
from gateway.types import JsonObject


class Signature(NamedTuple):
    """Who changes a route, and why."""

    actor: str
    reason: str


class Rollback(NamedTuple):
    """What a rollback did."""

    document: JsonObject
    """As stored, with its new revision."""
    restored: int
    """The revision that it says again."""
    passed_over: dict[int, str]
    """Later ones that could not be honoured, with the reason."""


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

    async def history(self, name: str) -> RouteHistory:
        """Earlier revisions. Raises `NotFound` for a model that is not loaded."""
        self._check(name)
        return RouteHistory(name, await self._store.history(name, REMEMBERED))

    async def put(self, name: str, document: JsonObject, *, expected: int, actor: str, reason: str) -> JsonObject:
        """Replace the route; the document as stored, with its new revision.

        Raises `InvalidRoute` naming the path in the document, `Conflict` if `expected` is not the stored revision.
        """
        raw = await self._raw_at(name, expected)
        if document.get("revision", expected) != expected:
            raise InvalidRoute(f"revision: is set by the gateway; leave it out or keep {expected}")
        # Aliases that others have written by now are known after this.
        await self._table.refresh()
        route = self._candidate(name, document, raw)
        await self._write(route, raw, expected, Signature(actor, reason))
        return route.document()

    async def patch(self, name: str, patch: JsonObject, *, expected: int, actor: str, reason: str) -> JsonObject:
        """Change parts of the route by JSON merge patch (RFC 7396). Raises as `put` does."""
        _, document = await self.stored(name)
        if document is None:
            document = {**self._in_force(name), "revision": expected}
        try:
            merged = _merge(document, patch)
        except RecursionError:
            raise InvalidRoute("document: nested deeper than any route") from None
        return await self.put(name, merged, expected=expected, actor=actor, reason=reason)

    async def rollback(self, name: str, to: int | None, *, expected: int, actor: str, reason: str) -> Rollback:
        """Write the document of revision `to` again; without a number, the last good one before what is stored.

        Good is what can be honoured with what is loaded now. Raises `NotFound` if there is none, `InvalidRoute` if `to`
        cannot be honoured, `Conflict` as `put` does.
        """
        raw = await self._raw_at(name, expected)
        history = await self.history(name)
        if to is None:
            restored, route, passed_over = self._last_good(name, history, raw)
        else:
            document = history.document(to)
            if is_same(document, parse_document(raw) or {}):
                raise InvalidRoute(f"revision {to} of route {name!r} is what is stored already")
            restored, route, passed_over = to, self._candidate(name, document, raw), {}
        await self._write(route, raw, expected, Signature(actor, reason), restores=restored)
        return Rollback(route.document(), restored, passed_over)

    async def compared(self, name: str, old: int | None, new: int | None) -> tuple[JsonObject, JsonObject]:
        """Two revisions; without `new` what is stored, without `old` what was before that. Raises `NotFound`."""
        history = await self.history(name)
        stored = (await self.stored(name))[1] if new is None else history.document(new)
        after = stored or self._in_force(name)
        if old is not None:
            return history.document(old), after
        before = next((document for _, document in history.before(after)), None)
        if before is None:
            raise NotFound(f"route {name!r} has no revision before {after.get('revision')}")
        return before, after

    async def proposed(self, name: str, document: JsonObject) -> Route:
        """The route that a document would be; nothing is written. Raises `InvalidRoute`, `NotFound`."""
        return self._candidate(name, document, await self._raw(name))

    def _candidate(self, name: str, document: JsonObject, raw: bytes | None) -> Route:
        """The route that a document would be in place of `raw`, with the revision that it would get."""
        in_force = self._table.get(name)
        # A store that lost the document must not hand out a revision a second time.
        successor = max(revision_of(raw), in_force.revision if in_force else 0) + 1
        return self._table.compile(name, {"name": name, **document, "revision": successor})

    def _last_good(self, name: str, history: RouteHistory, raw: bytes | None) -> tuple[int, Route, dict[int, str]]:
        passed_over: dict[int, str] = {}
        for revision, document in history.before(parse_document(raw)):
            try:
                return revision, self._candidate(name, document, raw), passed_over
            except InvalidRoute as error:
                passed_over[revision] = error.message
        why = "; ".join(f"revision {revision}: {problem}" for revision, problem in list(passed_over.items())[:3])
        raise NotFound(f"route {name!r} has no earlier revision that could be restored{': ' if why else ''}{why}")

    async def _write(
        self, route: Route, raw: bytes | None, expected: int, by: Signature, restores: int | None = None
    ) -> None:
        in_force = self._table.get(route.name)
        try:
            await self._store.write(
                route.document(),
                replaces=raw,
                actor=by.actor,
                reason=by.reason,
                default=in_force.document() if in_force and in_force.revision == 0 else None,
                restores=restores,
            )
        except Conflict:
            raise await self._conflict(route.name, expected) from None
        await self._table.refresh()

    def _in_force(self, name: str) -> JsonObject:
        route = self._table.get(name)
        return route.document() if route else {}

    def _check(self, name: str) -> None:
        if name not in self._registry.names:
            owner = self._table.model_of(name)
            hint = f"; it is an alias of {owner!r}" if owner != name else ""
            raise NotFound(f"no route {name!r}{hint}; routes: {', '.join(self._registry.names)}")

    async def _raw(self, name: str) -> bytes | None:
        self._check(name)
        return (await self._store.read([name]))[name]

    async def _raw_at(self, name: str, expected: int) -> bytes | None:
        """What is stored, if its revision is the one that a change was made for. Raises `Conflict`."""
        raw = await self._raw(name)
        if revision_of(raw) != expected:
            raise await self._conflict(name, expected)
        return raw

    async def _conflict(self, name: str, expected: int) -> Conflict:
        revision, document = await self.stored(name)
        told = (await self.history(name)).told_since(expected, revision, document)
        message = f"route {name!r} is at revision {revision}, the change was made for revision {expected}{told}"
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
