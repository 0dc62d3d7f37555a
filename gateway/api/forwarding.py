"""Requests that another process of the same gateway answers: a worker's for its supervisor, and the other way round."""

from __future__ import annotations

from string import punctuation
from urllib.parse import quote

import httpx
from starlette.requests import Request
from starlette.responses import Response

SAFE = punctuation
"""What stays as it is, percent signs included."""
PASSED_ON = ("accept", "content-type", "if-match")
"""Header fields of requests that the endpoints behind look at."""
KEPT_BACK = frozenset(("connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"))
"""Header fields of answers that are about the connection between the two processes."""


def target_of(request: Request) -> str:
    """Path and query as they came."""
    path, query = request.scope["raw_path"], request.scope["query_string"]
    # Bytes that have no place in a URL would be refused with a bug's traceback.
    return quote(path + b"?" + query if query else path, safe=SAFE)


def headers_of(request: Request) -> dict[str, str]:
    """What goes along, with the address of the client, which the history of a route names."""
    headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
    if request.client is not None:
        headers["x-forwarded-for"] = request.client.host
    return headers


def passed_back(answer: httpx.Response) -> Response:
    """The other process's answer as ours."""
    headers = {name: value for name, value in answer.headers.items() if name not in KEPT_BACK}
    return Response(answer.content, answer.status_code, headers)
