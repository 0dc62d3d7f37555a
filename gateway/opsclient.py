"""The command line's side of the admin API."""

from __future__ import annotations

import getpass
import os
from typing import Any

import httpx

from gateway.errors import StartupError
from gateway.types import JsonObject

DEFAULT_URL = "http://127.0.0.1:8081"
TIMEOUT_SECONDS = 10.0


class OpsClient:
    """Raises `StartupError` with the gateway's own words when it refuses."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)
        except (httpx.InvalidURL, TypeError, ValueError) as error:
            raise StartupError(f"--ops-url {url!r}: {error}") from error
        self._url = url

    def routes(self) -> list[JsonObject]:
        """Every route in force."""
        return list(self._call("GET", "/admin/routes").json()["routes"])

    def route(self, name: str) -> tuple[JsonObject, str]:
        """One route, and the tag that a change must name."""
        response = self._call("GET", f"/admin/routes/{name}")
        return response.json(), response.headers["etag"]

    def put_route(self, name: str, document: JsonObject, tag: str, reason: str) -> JsonObject:
        """Replace the route if it still is at `tag`; the document as stored."""
        parameters = {"actor": _actor(), "reason": reason}
        headers = {"If-Match": tag}
        response = self._call("PUT", f"/admin/routes/{name}", params=parameters, headers=headers, json=document)
        return dict(response.json())

    def history(self, name: str, limit: int) -> list[JsonObject]:
        """Changes of a route, newest first."""
        return list(self._call("GET", f"/admin/routes/{name}/history", params={"limit": limit}).json()["changes"])

    def drift(self, name: str | None) -> list[JsonObject]:
        """Latest verdicts, open windows and accuracy, one entry a model."""
        path = f"/admin/drift/{name}" if name else "/admin/drift"
        return list(self._call("GET", path).json()["models"])

    def verdicts(self, name: str, limit: int) -> list[JsonObject]:
        """Past verdicts on a model, newest first."""
        return list(self._call("GET", f"/admin/drift/{name}/history", params={"limit": limit}).json()["verdicts"])

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise StartupError(
                f"no gateway answers at {self._url} ({error}); start one with `gateway serve`, or name its ops port "
                "with --ops-url"
            ) from error
        if response.is_success:
            return response
        try:
            message = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            message = f"{response.status_code} {response.reason_phrase}; is {self._url} the ops port of a gateway?"
        raise StartupError(message)


def _actor() -> str:
    """Who runs the command; in a container the user often has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"
