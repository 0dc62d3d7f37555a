"""From a worker to its supervisor, for what is about all workers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from gateway.errors import Forbidden, GatewayError, InvalidRequest, NotFound, PayloadTooLarge, Unavailable, Unsupported
from gateway.types import JsonObject

ERRORS = {
    error.status: error for error in (InvalidRequest, Forbidden, NotFound, PayloadTooLarge, Unsupported, Unavailable)
}
"""By the status that the supervisor answers with."""


class Upward:
    """Asks the supervisor over its Unix socket. Has the methods of `ModelControl`, for the gRPC port."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        # A load takes as long as it takes; if the supervisor dies, so does the worker.
        self._http = httpx.AsyncClient(transport=transport, base_url="http://supervisor", timeout=None)  # noqa: S113

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(
        self, method: str, target: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """What it answers. Raises `Unavailable` if it does not."""
        try:
            return await self._http.request(method, target, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise Unavailable(f"the supervisor does not answer: {type(error).__name__}", retry_after=1.0) from error

    async def index(self, *, only_ready: bool = False) -> list[JsonObject]:
        """As `ModelControl.index`, of a worker."""
        entries: list[JsonObject] = await self._call("POST", "/v2/repository/index", {"ready": only_ready})
        return entries

    async def load(self, name: str, version: str | None = None) -> list[str]:
        """As `ModelControl.load`, in all workers or in none."""
        return await self._change(name, "load", version)

    async def unload(self, name: str, version: str | None = None) -> list[str]:
        """As `ModelControl.unload`, in all workers or in none."""
        return await self._change(name, "unload", version)

    async def statistics(self, model: str | None = None, version: str | None = None) -> JsonObject:
        """As `Inventory.statistics`, of all workers together."""
        path = "/v2/models"
        if model is not None:
            path += f"/{_quoted(model)}"
            path += f"/versions/{_quoted(version)}" if version is not None else ""
        document: JsonObject = await self._call("GET", f"{path}/stats")
        return document

    async def _change(self, name: str, verb: str, version: str | None) -> list[str]:
        parameters = {} if version is None else {"version": version}
        document = await self._call("POST", f"/v2/repository/models/{_quoted(name)}/{verb}", {"parameters": parameters})
        return list(document["versions"])

    async def _call(self, method: str, target: str, document: JsonObject | None = None) -> Any:
        """The document that it answers with. Raises the `GatewayError` that it answered with."""
        answer = await self.ask(method, target, orjson.dumps(document) if document is not None else b"")
        if not answer.is_success:
            raise ERRORS.get(answer.status_code, GatewayError)(answer.json()["error"])
        return answer.json()


def _quoted(part: str) -> str:
    return quote(part, safe="")
