"""The ops port: routes, verdicts and metrics."""

from __future__ import annotations

import dataclasses
import re

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.answers import json_response
from gateway.api.auth import METRICS_PATH
from gateway.api.body import read_body
from gateway.errors import InvalidRequest, PreconditionRequired
from gateway.protocol.json_codec import decode_object
from gateway.routing.differences import differences
from gateway.serving.route_editor import RouteEditor
from gateway.serving.route_simulator import RouteSimulator
from gateway.serving.route_table import RouteTable
from gateway.serving.watching import Watching
from gateway.state.route_store import RouteStore
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import JsonObject

ROUTE_BODY_LIMIT = 256 * 1024
TEXT_LIMIT = 500
"""Characters of an actor or a reason."""
HISTORY_LIMIT = 1_000
SIMULATED_REQUESTS = 10_000
SIMULATION_LIMIT = 100_000
REVISION_TAG = re.compile(r'(?:W/)?"?(\d{1,8})"?\Z')


class AdminApi:
    """Endpoints for ops people and the command line."""

    def __init__(
        self,
        table: RouteTable,
        store: RouteStore,
        editor: RouteEditor,
        simulator: RouteSimulator,
        watching: Watching,
        metrics: GatewayMetrics,
    ) -> None:
        self._table = table
        self._store = store
        self._editor = editor
        self._simulator = simulator
        self._watching = watching
        self._metrics = metrics

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [
            Route("/admin/routes", self.list_routes),
            Route("/admin/routes/{name}", self.one_route, methods=["GET", "PUT", "PATCH"]),
            Route("/admin/routes/{name}/history", self.route_history),
            Route("/admin/routes/{name}/revisions/{revision}", self.route_revision),
            Route("/admin/routes/{name}/diff", self.route_diff),
            Route("/admin/routes/{name}/rollback", self.roll_back, methods=["POST"]),
            Route("/admin/routes/{name}/simulate", self.simulate_route, methods=["POST"]),
            Route("/admin/drift", self.drift),
            Route("/admin/drift/{name}", self.drift),
            Route("/admin/drift/{name}/history", self.drift_history),
            Route(METRICS_PATH, self.metrics),
        ]

    async def list_routes(self, _request: Request) -> Response:
        """Every route in force, with the problem that keeps a stored document out of force."""
        return json_response({"routes": [self._in_force(route.name) for route in self._table]})

    async def one_route(self, request: Request) -> Response:
        """One endpoint for one path, so that the wrong verb is answered with all right ones."""
        is_change = request.method in {"PUT", "PATCH"}
        return await (self.change_route(request) if is_change else self.show_route(request))

    async def show_route(self, request: Request) -> Response:
        """One route in force; `ETag` is the stored revision, which a change must name."""
        name = request.path_params["name"]
        revision, _ = await self._editor.stored(name)
        return json_response(self._in_force(name), headers={"ETag": f'"{revision}"'})

    async def change_route(self, request: Request) -> Response:
        """PUT replaces the document, PATCH merges into it (RFC 7396). `If-Match` names the revision it changes."""
        expected = _expected_revision(request)
        document = decode_object(await read_body(request, ROUTE_BODY_LIMIT))
        change = self._editor.put if request.method == "PUT" else self._editor.patch
        stored = await change(request.path_params["name"], document, expected=expected, **_signature(request))
        return json_response(stored, headers={"ETag": f'"{stored["revision"]}"'})

    async def route_history(self, request: Request) -> Response:
        """Who changed the route, when and why; newest first."""
        name = request.path_params["name"]
        await self._editor.stored(name)
        entries = await self._store.history(name, _limit(request))
        return json_response({"name": name, "changes": [dataclasses.asdict(entry) for entry in entries]})

    async def route_revision(self, request: Request) -> Response:
        """The document of an earlier revision."""
        history = await self._editor.history(request.path_params["name"])
        return json_response(history.document(_revision(request.path_params["revision"], "revision")))

    async def route_diff(self, request: Request) -> Response:
        """What changed from revision `from` to revision `to`; without them, by the latest change."""
        name = request.path_params["name"]
        old, new = (request.query_params.get(end) for end in ("from", "to"))
        before, after = await self._editor.compared(
            name, None if old is None else _revision(old, "from"), None if new is None else _revision(new, "to")
        )
        changes = [change._asdict() for change in differences(before, after)]
        return json_response(
            {"name": name, "from": before.get("revision"), "to": after.get("revision"), "changes": changes}
        )

    async def roll_back(self, request: Request) -> Response:
        """`{"to": revision}`, or `{}` for the last good one before: its document becomes the newest revision."""
        expected = _expected_revision(request)
        body = decode_object(await read_body(request, ROUTE_BODY_LIMIT))
        to = body.get("to")
        if not body.keys() <= {"to"} or not (to is None or (type(to) is int and to >= 0)):
            raise InvalidRequest('expected {"to": revision}, a whole number, or {}')
        done = await self._editor.rollback(request.path_params["name"], to, expected=expected, **_signature(request))
        passed_over = [{"revision": revision, "problem": problem} for revision, problem in done.passed_over.items()]
        return json_response(
            {**done.document, "restored": done.restored, "passed_over": passed_over},
            headers={"ETag": f'"{done.document["revision"]}"'},
        )

    async def simulate_route(self, request: Request) -> Response:
        """What the document in the body would have done with the newest requests in the log."""
        document = decode_object(await read_body(request, ROUTE_BODY_LIMIT))
        limit = _limit(request, SIMULATED_REQUESTS, SIMULATION_LIMIT)
        return json_response(await self._simulator.simulate(request.path_params["name"], document, limit))

    async def drift(self, request: Request) -> Response:
        """Latest verdicts, windows still open, and accuracy on labels; of one model or of all."""
        return json_response({"models": await self._watching.report(request.path_params.get("name"))})

    async def drift_history(self, request: Request) -> Response:
        """Past verdicts of one model; newest first."""
        name = request.path_params["name"]
        return json_response({"name": name, "verdicts": await self._watching.history(name, _limit(request))})

    async def metrics(self, request: Request) -> Response:
        """Prometheus exposition, in the format the scraper asks for."""
        await self._watching.refresh_gauges()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"Content-Type": content_type})

    def _in_force(self, name: str) -> JsonObject:
        route = self._table.get(name)
        document = route.document() if route else {}
        return {**document, "problem": self._table.problems.get(name)}


def _expected_revision(request: Request) -> int:
    tag = request.headers.get("if-match")
    if tag is None:
        raise PreconditionRequired('a change needs If-Match: "<revision>", as GET gives it in ETag')
    matched = REVISION_TAG.match(tag.strip())
    if matched is None:
        raise InvalidRequest(f'If-Match: expected a revision such as "7", got {tag!r:.40}')
    return int(matched[1])


def _revision(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 8:
        raise InvalidRequest(f"{name}: expected a revision, a whole number, got {text!r:.20}")
    return int(text)


def _signature(request: Request) -> dict[str, str]:
    """Who changes a route, and why."""
    actor = _text(request, "actor") or (request.client.host if request.client else "unknown")
    return {"actor": actor, "reason": _text(request, "reason")}


def _text(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if len(text) > TEXT_LIMIT:
        raise InvalidRequest(f"{name}: at most {TEXT_LIMIT} characters, got {len(text)}")
    return text


def _limit(request: Request, default: int = 20, highest: int = HISTORY_LIMIT) -> int:
    text = request.query_params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= highest:
        raise InvalidRequest(f"limit: expected a whole number from 1 to {highest}, got {text!r:.20}")
    return int(text)
