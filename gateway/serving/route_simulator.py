"""What a document would have done with the newest requests in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing, suppress

from gateway.errors import InvalidRoute, NotFound
from gateway.protocol.log_codec import LoggedRequest, MalformedEntry, decode_requests
from gateway.routing import Route, compile_route
from gateway.routing.simulation import Conditions, Routed, Simulation
from gateway.serving.route_editor import RouteEditor
from gateway.serving.route_history import RouteHistory
from gateway.serving.route_table import RouteTable
from gateway.state.log_reader import LogReader
from gateway.types import JsonObject

MAX_BYTES = 64 * 2**20
"""Of the log's `meta` read for one simulation; models with long texts have few requests in so much."""


class RouteSimulator:
    """Reads the log and the history; writes nothing. What takes long is done on a thread."""

    def __init__(self, editor: RouteEditor, table: RouteTable, log: LogReader) -> None:
        self._editor = editor
        self._table = table
        self._log = log

    async def simulate(self, name: str, document: JsonObject, limit: int) -> JsonObject:
        """The newest `limit` logged requests under the route that `document` makes (`Simulation.document`).

        Besides, `since` and `until`, the Unix times between which they were logged. Raises `InvalidRoute` naming the
        path in the document, `NotFound`, `StoreUnavailable`.
        """
        route = await self._editor.proposed(name, document)
        history = await self._editor.history(name)
        requests: list[LoggedRequest] = []
        times: list[float] = []
        size = 0
        async with aclosing(self._log.metas(name)) as pages:
            async for page in pages:
                size += sum(map(len, page))
                for logged_at, batch in await asyncio.to_thread(_decoded, page):
                    times.append(logged_at)
                    requests += reversed(batch)
                if len(requests) >= limit or size >= MAX_BYTES:
                    break
        del requests[limit:]
        past = self._past(name, history, {request.revision for request in requests})
        simulated = await asyncio.to_thread(_simulated, route, past, requests[::-1])
        return {"name": name, "since": min(times, default=None), "until": max(times, default=None), **simulated}

    def _past(self, name: str, history: RouteHistory, revisions: Iterable[int]) -> dict[int, Conditions]:
        """The match rules of earlier revisions, where they are known."""
        known: dict[int, Conditions] = {0: ()}
        for revision in revisions:
            with suppress(NotFound, InvalidRoute):
                known[revision] = _conditions(compile_route(history.document(revision), name=name))
        in_force = self._table.get(name)
        if in_force is not None:
            known[in_force.revision] = _conditions(in_force)
        return known


def _conditions(route: Route) -> Conditions:
    return [match.condition for match in route.matches]


def _decoded(metas: Iterable[bytes]) -> list[tuple[float, tuple[LoggedRequest, ...]]]:
    decoded = []
    for meta in metas:
        # The collector sets such entries aside and says so.
        with suppress(MalformedEntry):
            decoded.append(decode_requests(meta))
    return decoded


def _simulated(route: Route, past: dict[int, Conditions], requests: Iterable[LoggedRequest]) -> JsonObject:
    simulation = Simulation(route, past)
    simulation.add(
        Routed(one.variant, one.revision, one.units, one.bucket, one.holdout_bucket, one.rule) for one in requests
    )
    return simulation.document()
