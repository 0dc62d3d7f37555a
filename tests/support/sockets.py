"""Requests byte for byte, for what an HTTP client would not do."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import orjson

from tests.support.running import GatewayProcess


def connection(gateway: GatewayProcess) -> socket.socket:
    """A raw connection to the public port."""
    parts = urlsplit(gateway.public_url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=10.0)


def request_bytes(model: str, document: dict[str, Any], headers: bytes = b"") -> bytes:
    """An inference request as bytes."""
    content = orjson.dumps(document)
    head = b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: h\r\n%sContent-Length: %d\r\n\r\n"
    return head % (model.encode(), headers, len(content)) + content


def read_answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, Any]]]:
    """Status and document of that many answers on one connection, in the order in which they came."""
    answers: list[tuple[int, dict[str, Any]]] = []
    data = b""
    while len(answers) < count:
        received = sock.recv(65_536)
        assert received, "the connection was closed early"
        data += received
        while b"\r\n\r\n" in data:
            head, rest = data.split(b"\r\n\r\n", 1)
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields[b"content-length"])
            if len(rest) < length:
                break
            answers.append((int(head.split()[1]), orjson.loads(rest[:length])))
            data = rest[length:]
    assert data == b""
    return answers
