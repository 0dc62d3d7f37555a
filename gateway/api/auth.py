"""Who may use the ops port: the bearer of the token; without a token, whoever is on this machine."""

from __future__ import annotations

import re
from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.answers import error_response
from gateway.errors import Forbidden, GatewayError, Unauthorized, shown
from gateway.settings import is_loopback

METRICS_PATH = "/metrics"
HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::\d+)?\Z")


class OpsGuard:
    """Pure ASGI middleware in front of everything on the ops port."""

    def __init__(self, app: ASGIApp, token: str | None, *, metrics_public: bool) -> None:
        self._app = app
        self._token = token
        self._metrics_public = metrics_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 401 or 403."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            headers = {"WWW-Authenticate": "Bearer"} if isinstance(problem, Unauthorized) else None
            await error_response(problem, headers)(scope, receive, send)

    def _problem(self, scope: Scope) -> GatewayError | None:
        if self._metrics_public and scope["path"] == METRICS_PATH:
            return None
        headers = Headers(scope=scope)
        if self._token is None:
            # The port is bound to loopback. A page in a browser on this machine can still reach it under a host name
            # that it made resolve here (DNS rebinding); such a request names that host.
            host = headers.get("host", "localhost")
            matched = HOST.match(host.lower())
            if matched is not None and is_loopback(matched["ipv6"] or matched["name"]):
                return None
            return Forbidden(f"the ops port answers only under a loopback name, not {shown(host)}")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and compare_digest(given.strip().encode(), self._token.encode()):
            return None
        return Unauthorized("the ops port needs `Authorization: Bearer <GATEWAY_OPS_TOKEN>`")
