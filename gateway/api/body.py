"""Reading a request body without holding more of it than is allowed."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request

from gateway.errors import InvalidRequest, PayloadTooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge` as soon as it is known to exceed `limit` bytes."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            chunks.append(chunk)
    except ClientDisconnect:
        raise InvalidRequest("the client left before the end of the body") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(limit: int) -> PayloadTooLarge:
    """The error for a body above `limit` bytes."""
    return PayloadTooLarge(f"the body exceeds {limit} bytes; send fewer rows in a request")
