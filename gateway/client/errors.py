"""What a call can end in, other than its result. What cannot be sent at all is a `ValueError`."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import orjson

from gateway.errors import shown


class InferenceError(Exception):
    """Base of every error of a call."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        """The gateway's own words where it answered."""
        self.status = status
        """HTTP status; None if there was no answer."""
        self.retry_after = retry_after
        """Seconds after which the same call may succeed, as the gateway said."""


class RequestRefused(InferenceError):
    """4xx: sent again unchanged, the request would be refused again."""


class ModelNotFound(RequestRefused):
    """404: no such model or version."""


class Unavailable(InferenceError):
    """429 or 503: the gateway did not do it, and may later."""


class ServerFailed(InferenceError):
    """Any other status: the model failed, or the server lacks a part of the protocol."""


class InvalidResponse(InferenceError):
    """An answer that is not what the protocol says."""


class TransportError(InferenceError):
    """There was no answer."""


class Unreachable(TransportError):
    """No connection, so nothing was sent."""


class ConnectionLost(TransportError):
    """The connection ended before the answer did: the request may have been processed."""


class TimedOut(TransportError):
    """Nothing moved for `timeout` seconds."""


def error_of(response: httpx.Response, now: float) -> InferenceError:
    """The error that an answer is; `now` is Unix time in seconds, for a `Retry-After` that is a date."""
    status = response.status_code
    kind = _kind(status)
    retry_after = seconds_of(response.headers.get("retry-after"), now)
    return kind(_message(response), status=status, retry_after=retry_after)


def transport_error(error: httpx.HTTPError) -> TransportError:
    """The error that a failure of httpx is."""
    reason = f"{error.request.method} {error.request.url}: {error or 'no reason given'} ({type(error).__name__})"
    # Before NetworkError and the like: a timeout while connecting is a timeout, and is not tried again.
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(reason)
    if isinstance(error, httpx.ConnectError):
        return Unreachable(reason)
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return ConnectionLost(reason)
    return TransportError(reason)


def _kind(status: int) -> type[InferenceError]:
    if status in {429, 503}:
        return Unavailable
    if status == 404:
        return ModelNotFound
    return RequestRefused if 400 <= status < 500 else ServerFailed


def _message(response: httpx.Response) -> str:
    try:
        message = orjson.loads(response.content)["error"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        message = None
    if isinstance(message, str) and message:
        return message
    status = f"{response.status_code} {response.reason_phrase}"
    return f"{response.request.url}: {status}, without an error of the protocol: {shown(response.text)}"


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for: a whole number of them, or a date (RFC 9110 section 10.2.3).

    None without the header, and for one that is neither.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # The oldest of the three formats of RFC 9110 section 5.6.7 names no zone; all of them are in GMT.
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
