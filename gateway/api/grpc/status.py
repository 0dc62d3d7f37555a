"""The one mapping from errors to gRPC statuses."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import grpc

from gateway.errors import DeadlineExceeded, GatewayError

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
MAX_DETAIL_BYTES = 2_000
"""Details travel percent-encoded in a header, three bytes for one of most, and clients take 8 KiB of headers."""


class Status(NamedTuple):
    """How an RPC ends."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str], ...]


def status_of(error: GatewayError) -> Status:
    """Code, message and, where a retry makes sense, `retry-after` in whole seconds."""
    code = CODES.get(error.status, grpc.StatusCode.INTERNAL)
    if isinstance(error, DeadlineExceeded):
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    details = error.message.encode(errors="replace")[:MAX_DETAIL_BYTES].decode(errors="ignore")
    metadata = () if error.retry_after is None else (("retry-after", str(max(1, math.ceil(error.retry_after)))),)
    return Status(code, details, metadata)


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: GatewayError) -> NoReturn:
    """End the RPC with the error's status."""
    await context.abort(*status_of(error))
