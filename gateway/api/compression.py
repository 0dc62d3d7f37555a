"""Content codings of request and answer bodies: gzip, and deflate, which is zlib's format (RFC 9110, section 8.4.1)."""

from __future__ import annotations

import zlib
from functools import lru_cache

from gateway.api.body import too_large
from gateway.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding, shown

MIN_COMPRESSED_BYTES = 1024
"""A shorter answer is sent as it is: the network would gain less than the processor loses."""
LEVEL = 1
"""zlib's fastest: an answer waits for it."""
WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""What zlib calls the formats; in the order of preference among equals."""
ALIASES = {"x-gzip": "gzip"}
MAX_EXPANSION = 200
"""A body may unpack to so many times its size. Tensors stay far below, unless they are nearly constant; a bomb is near
1,030, the most that DEFLATE can do."""
STEP_BYTES = 2**20
"""How much is unpacked before the expansion is looked at (again)."""


def content_encoding(value: str | None) -> str | None:
    """The coding of a request body, None for none. Raises `UnsupportedEncoding`."""
    coding = "" if value is None else value.strip().lower()
    coding = ALIASES.get(coding, coding)
    if coding in ("", "identity"):
        return None
    if coding not in WINDOW_BITS:
        raise UnsupportedEncoding(
            f"Content-Encoding: expected one of {', '.join(WINDOW_BITS)} or none, got {shown(value)}"
        )
    return coding


def decompress(body: bytes, coding: str, limit: int) -> bytes:
    """The whole body.

    Raises `PayloadTooLarge` above `limit` bytes, or as soon as `STEP_BYTES` or more have come from less than a
    `MAX_EXPANSION`th of them, having made no more of it; `InvalidRequest`.
    """
    inflater = zlib.decompressobj(WINDOW_BITS[coding])
    parts: list[bytes] = []
    size = 0
    rest = body
    while size <= limit and not inflater.eof:
        try:
            part = inflater.decompress(rest, min(STEP_BYTES, limit + 1 - size))
        except zlib.error as error:
            raise InvalidRequest(f"body: not {coding}, as Content-Encoding says it is: {error}") from error
        rest = inflater.unconsumed_tail
        parts.append(part)
        size += len(part)
        if not part and not inflater.eof:
            raise InvalidRequest(f"body: the {coding} data are not complete")
        if size >= STEP_BYTES and size > MAX_EXPANSION * (len(body) - len(rest)):
            raise PayloadTooLarge(
                f"the body unpacks to over {MAX_EXPANSION} times its size; send it without Content-Encoding"
            )
    if size > limit:
        raise too_large(limit)
    if inflater.unused_data:
        raise InvalidRequest(f"body: {len(inflater.unused_data)} bytes too many after the {coding} data")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def compress(body: bytes, coding: str) -> bytes:
    """The body in a coding."""
    return zlib.compress(body, LEVEL, WINDOW_BITS[coding])


@lru_cache(maxsize=256)
def accepted_encoding(value: str) -> str | None:
    """The coding that an `Accept-Encoding` header likes best of those we have (RFC 9110, section 12.5.3).

    None if it likes the body as it is as much, or no other.
    """
    weights: dict[str, float] = {}
    for element in value.lower().split(","):
        coding, *parameters = (part.strip() for part in element.split(";"))
        weights.setdefault(ALIASES.get(coding, coding), _weight(parameters))
    others = weights.get("*", 0.0)
    best = max(WINDOW_BITS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, number = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(number)))
            except ValueError:
                return 0.0
    return 1.0
