"""The public port describes itself: `/openapi.json` for programs, `/try` for people."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.api.answers import JSON_TYPE
from gateway.api.openapi import openapi
from gateway.runtime.registry import Registry
from gateway.serving.route_table import RouteTable


class DocumentationApi:
    """Endpoints about the other endpoints."""

    def __init__(self, registry: Registry, table: RouteTable) -> None:
        self._registry = registry
        self._table = table
        self._document = b""
        self._documented: object = None
        self._page = files("gateway.api").joinpath("static/try.html").read_text("utf-8")
        self._page_headers = {
            "Content-Security-Policy": content_security_policy(self._page),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        return [Route("/openapi.json", self.openapi), Route("/try", self.page)]

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`: made anew when models or routes have changed, since that takes a millisecond a model."""
        # Not the versions themselves: one that is unloaded should not be kept in memory by this.
        versions = [(version.key, version.signature, version.config, version.manifest) for version in self._registry]
        current = (versions, list(self._table))
        if current != self._documented:
            self._document = orjson.dumps(openapi(request.app.routes, self._registry, self._table))
            self._documented = current
        return Response(self._document, headers={"Cache-Control": "no-cache"}, media_type=JSON_TYPE)

    async def page(self, _request: Request) -> Response:
        """`GET /try`: all of it is one file, which asks for `/openapi.json`."""
        return HTMLResponse(self._page, headers=self._page_headers)


def content_security_policy(page: str) -> str:
    """Only the page's own script and style run, and they talk to nobody but this server (CSP Level 3)."""

    def hashes(element: str) -> str:
        contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = (hashlib.sha256(content.encode()).digest() for content in contents)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
