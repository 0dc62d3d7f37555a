"""The one mapping from errors to HTTP answers. Every answer that is no success is `{"error": "..."}`."""

from __future__ import annotations

import logging
import math
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import GatewayError, MethodNotAllowed, NotFound

logger = logging.getLogger(__name__)

JSON_TYPE = "application/json"


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status, headers, JSON_TYPE)


def error_response(error: GatewayError, headers: dict[str, str] | None = None) -> Response:
    """Status and body of an error; `Retry-After` in whole seconds where a retry makes sense."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return json_response({"error": error.message}, error.status, headers)


async def on_gateway_error(_request: Request, error: Exception) -> Response:
    """For Starlette's exception handlers."""
    assert isinstance(error, GatewayError)  # noqa: S101 -- registered for this class only
    return error_response(error)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the protocol's words."""
    assert isinstance(error, HTTPException)  # noqa: S101 -- registered for this class only
    known: dict[int, GatewayError] = {404: NotFound("Not Found"), 405: MethodNotAllowed("Method Not Allowed")}
    headers = dict(error.headers or {})
    if error.status_code in known:
        return error_response(known[error.status_code], headers)
    return json_response({"error": error.detail}, error.status_code, headers)


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """A bug: the client learns that it was not its fault, the log gets the traceback."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(GatewayError("internal error; the gateway's log says more"))


EXCEPTION_HANDLERS: dict[Any, Any] = {
    GatewayError: on_gateway_error,
    HTTPException: on_http_exception,
    Exception: on_unexpected_error,
}
