"""The command line's side of the admin API."""

from __future__ import annotations

import getpass
import os
from typing import Any
from urllib.parse import quote

import httpx

from gateway.errors import StartupError
from gateway.types import JsonObject

DEFAULT_URL = "http://127.0.0.1:8081"
TIMEOUT_SECONDS = 10.0


class OpsClient:
    """Raises `StartupError` with the gateway's own words when it refuses."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def routes(self) -> list[JsonObject]:
        """Every route in force."""
        return list(self._call("GET", "/admin/routes", "routes")[0]["routes"])

    def route(self, name: str) -> tuple[JsonObject, str]:
        """One route, and the tag that a change must name."""
        document, headers = self._call("GET", f"/admin/routes/{_quoted(name)}", "variants")
        return document, headers["etag"]

    def put_route(self, name: str, document: JsonObject, tag: str, reason: str, actor: str | None = None) -> JsonObject:
        """Replace the route if it still is at `tag`; the document as stored.

        `actor` is who does it; without one, the user who runs the command.
        """
        return self._change("PUT", f"/admin/routes/{_quoted(name)}", document, tag, reason, actor)

    def roll_back(self, name: str, to: int | None, tag: str, reason: str, actor: str | None = None) -> JsonObject:
        """Put an earlier document in force again if the route still is at `tag`.

        The document as stored, the revision that it says again (`restored`), and what was `passed_over`.
        """
        path = f"/admin/routes/{_quoted(name)}/rollback"
        return self._change("POST", path, {} if to is None else {"to": to}, tag, reason, actor)

    def revision(self, name: str, revision: int) -> JsonObject:
        """The document of an earlier revision."""
        return self._call("GET", f"/admin/routes/{_quoted(name)}/revisions/{revision}", "variants")[0]

    def diff(self, name: str, old: int | None, new: int | None) -> JsonObject:
        """What changed between two revisions: `from`, `to` and `changes`."""
        ends = {key: value for key, value in (("from", old), ("to", new)) if value is not None}
        return self._call("GET", f"/admin/routes/{_quoted(name)}/diff", "changes", params=ends)[0]

    def simulate(self, name: str, document: JsonObject, limit: int) -> JsonObject:
        """What a document would have done with the newest logged requests."""
        path = f"/admin/routes/{_quoted(name)}/simulate"
        return self._call("POST", path, "moves", params={"limit": limit}, json=document)[0]

    def history(self, name: str, limit: int) -> list[JsonObject]:
        """Changes of a route, newest first."""
        path = f"/admin/routes/{_quoted(name)}/history"
        return list(self._call("GET", path, "changes", params={"limit": limit})[0]["changes"])

    def drift(self, name: str | None) -> list[JsonObject]:
        """Latest verdicts, open windows and accuracy, one entry a model."""
        path = f"/admin/drift/{_quoted(name)}" if name else "/admin/drift"
        return list(self._call("GET", path, "models")[0]["models"])

    def verdicts(self, name: str, limit: int) -> list[JsonObject]:
        """Past verdicts on a model, newest first."""
        path = f"/admin/drift/{_quoted(name)}/history"
        return list(self._call("GET", path, "verdicts", params={"limit": limit})[0]["verdicts"])

    def _change(self, method: str, path: str, body: JsonObject, tag: str, reason: str, actor: str | None) -> JsonObject:
        signature = {"actor": actor or _actor(), "reason": reason}
        return self._call(method, path, "variants", params=signature, headers={"If-Match": tag}, json=body)[0]

    def _call(self, method: str, path: str, expected: str, **options: Any) -> tuple[JsonObject, httpx.Headers]:
        """The document, which has the key `expected`, and the headers of the answer."""
        try:
            with httpx.Client(
                base_url=self._url, headers=self._headers, timeout=TIMEOUT_SECONDS, trust_env=False
            ) as http:
                response = http.request(method, path, **options)
        except (httpx.InvalidURL, TypeError, ValueError) as error:
            raise StartupError(f"--ops-url {self._url!r}: {error}") from error
        except httpx.HTTPError as error:
            raise StartupError(
                f"no gateway answers at {self._url} ({error}); start one with `gateway serve`, or name its ops port "
                "with --ops-url"
            ) from error
        try:
            document = dict(response.json())
        except (ValueError, TypeError):
            document = {}
        if response.is_success and expected in document:
            return document, response.headers
        status = f"{response.status_code} {response.reason_phrase}; is {self._url} the ops port of a gateway?"
        raise StartupError(str(document.get("error") or f"{path}: {status}"))


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _actor() -> str:
    """Who runs the command; in a container the user often has no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{os.uname().nodename}"
