"""The error tree: each class carries its HTTP status and a stable code.

An error is raised where the mistake is known best and turned into an HTTP answer in one place, `api/`. Its message is
for the client: it says what was wrong and what would be right. Its `code` is the `reason` label of the error metric.
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar

SHOWN_CHARACTERS = 120

_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = _short.maxother = SHOWN_CHARACTERS


def shown(value: Any) -> str:
    """What came, for a message: a repr that stays short however long or deep the value is."""
    text = _short.repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


class GatewayError(Exception):
    """Base of every error that a client or an operator can see."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        """Seconds after which the same request may succeed; sent as `Retry-After`."""


class InvalidRequest(GatewayError):
    """The request is malformed or does not fit the model's signature."""

    status = 400
    code = "invalid_request"


class Unauthorized(GatewayError):
    """The ops port needs a token and the request carries none, or a wrong one."""

    status = 401
    code = "unauthorized"


class Forbidden(GatewayError):
    """Only operators may do this: not a client of the public port, nor a browser whom somebody else's page sent."""

    status = 403
    code = "forbidden"


class NotFound(GatewayError):
    """No such path, model, version or route."""

    status = 404
    code = "not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, the verb does not."""

    status = 405
    code = "method_not_allowed"


class Conflict(GatewayError):
    """`If-Match` names a revision that is no longer the current one."""

    status = 412
    code = "conflict"


class PayloadTooLarge(GatewayError):
    """The body exceeds `max_body_bytes`."""

    status = 413
    code = "payload_too_large"


class InvalidRoute(GatewayError):
    """A route document that could not be honoured; the message names the path in the document."""

    status = 422
    code = "invalid_route"


class PreconditionRequired(GatewayError):
    """A change without `If-Match` could overwrite somebody else's."""

    status = 428
    code = "precondition_required"


class TooManyRequests(GatewayError):
    """The model's queue is full; nothing was done."""

    status = 429
    code = "queue_full"


class InferenceFailed(GatewayError):
    """ONNX Runtime failed on well-formed input."""

    status = 500
    code = "inference_failed"


class Unsupported(GatewayError):
    """A part of the protocol that this gateway does not implement."""

    status = 501
    code = "unsupported"


class UnsupportedEncoding(Unsupported):
    """The body is compressed in a way that this gateway does not read; the answer names those that it reads."""

    code = "unsupported_encoding"


class Unavailable(GatewayError):
    """The model is not loaded, the gateway is shutting down, or the store does not answer."""

    status = 503
    code = "unavailable"


class StoreUnavailable(Unavailable):
    """Redis does not answer, or answers with an error of its own."""

    code = "store_unavailable"


class DeadlineExceeded(Unavailable):
    """The request waited in the queue longer than it may."""

    code = "deadline_exceeded"


class DeadlineUnreachable(Unavailable):
    """The request would be answered after its deadline, by what is known; nothing was done."""

    code = "deadline_unreachable"


class InsufficientMemory(GatewayError):
    """A model does not fit beside those that are loaded; nothing was loaded."""

    status = 507
    code = "insufficient_memory"


class StartupError(Exception):
    """The process cannot start as configured; the message says what to change. Never reaches a client."""


class NotEnoughMemory(StartupError):
    """A model does not fit beside those that are loaded."""
