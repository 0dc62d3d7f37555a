"""Answers as they are sent on a connection."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from gateway.api.answers import JSON_TYPE
from gateway.api.door import Answer

OK_ANSWER = b"%b%b\r\ncontent-length: %d\r\n\r\n%b"
"""The head up to the prediction id, the id, and the body."""
OK_TIMED_ANSWER = b"%b%b\r\nserver-timing: %b\r\ncontent-length: %d\r\n\r\n%b"
"""The same with the timing after the id."""
UNCOPIED_BYTES = 64 * 1024
"""A body this large is sent from where it is, instead of being copied behind its head."""
JSON_FIELD = f"\r\ncontent-type: {JSON_TYPE}".encode()


def ok_answer(head: bytes, prediction_id: bytes, timing: bytes, body: bytes) -> bytes:
    """A 200 with JSON; `head` ends where the prediction id begins."""
    if timing:
        return OK_TIMED_ANSWER % (head, prediction_id, timing, len(body), body)
    return OK_ANSWER % (head, prediction_id, len(body), body)


def head_of(answer: Answer, default_fields: list[tuple[bytes, bytes]], *, is_last: bool) -> bytes:
    """Everything before the body of any answer; `default_fields` are uvicorn's."""
    status, body, prediction_id, timing, fields = answer
    parts = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    parts += [b"\r\n%b: %b" % field for field in default_fields]
    parts += [f"\r\n{name}: {value}".encode("latin-1") for name, value in fields]
    if not fields or all(name != "content-type" for name, _ in fields):
        parts.append(JSON_FIELD)
    if prediction_id:
        parts.append(b"\r\nprediction-id: " + prediction_id)
    if timing:
        parts.append(b"\r\nserver-timing: " + timing)
    if is_last:
        parts.append(b"\r\nconnection: close")
    parts.append(b"\r\ncontent-length: %d\r\n\r\n" % len(body))
    return b"".join(parts)


def write_all(transport: asyncio.WriteTransport, parts: list[bytes]) -> None:
    """Send them one after the other."""
    if any(len(part) >= UNCOPIED_BYTES for part in parts):
        transport.writelines(parts)
    else:
        transport.write(b"".join(parts))
