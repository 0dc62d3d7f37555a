"""What a connection needs to tell an inference request from the rest, cheaply and once for all connections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

TARGET = re.compile(rb"/v2/models/([A-Za-z0-9._-]+)(?:/versions/([0-9]+))?/infer\Z")
MAX_TARGETS = 4096
"""Request targets remembered, so that each is matched once."""

MAX_HEADS = 2048
"""Request heads remembered: a client sends few, but one that stamps each request anew sends no two alike."""
MAX_HEAD_BYTES = 2048


class Target(NamedTuple):
    """Whom a request is for."""

    model: str
    version: str | None


class RequestHeaders(Mapping[str, str]):
    """The parser's header fields, decoded only where a rule asks for one; of equal names the first counts.

    One of these serves a connection: it is looked at while a request is admitted, not later.
    """

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def __getitem__(self, name: str) -> str:
        wanted = name.encode("latin-1")
        for field, value in self.fields:
            if field == wanted:
                return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({field.decode("latin-1"): None for field, _ in self.fields})

    def __len__(self) -> int:
        return len({field for field, _ in self.fields})


class Head(NamedTuple):
    """What the parser read out of the head of an inference request with nothing unusual in it."""

    target: Target
    fields: list[tuple[bytes, bytes]]
    length: int
    """Of the body, as the head announces it."""
    announced: str | None
    """How much of that is JSON, as the head has it; None where all is."""
    coding: str | None
    """In which the client would rather have a long answer."""


class ServerShare:
    """What the connections of a server share."""

    __slots__ = ("_fields", "_head", "heads", "targets")

    def __init__(self) -> None:
        self.targets: dict[bytes, Target | None] = {}
        self.heads: dict[bytes, Head] = {}
        """By their bytes: what the parser has read once it need not read again."""
        self._fields: list[tuple[bytes, bytes]] | None = None
        self._head = b""

    def target(self, url: bytes) -> Target | None:
        """Whom a request target names; None if it is no inference request."""
        try:
            return self.targets[url]
        except KeyError:
            matched = TARGET.match(url)
        target = Target(matched[1].decode(), matched[2].decode() if matched[2] else None) if matched else None
        if len(self.targets) < MAX_TARGETS:
            self.targets[url] = target
        return target

    def learn(self, raw: bytes, head: Head) -> None:
        """Remember a head that the parser has read; when they are too many all are forgotten."""
        if len(raw) <= MAX_HEAD_BYTES:
            if len(self.heads) >= MAX_HEADS:
                self.heads.clear()
            self.heads[raw] = head

    def ok_head(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """The head of a 200 up to the prediction id; `fields` are uvicorn's default headers, renewed each second."""
        if fields is not self._fields:
            self._fields = fields
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
            self._head = b"HTTP/1.1 200 OK\r\n" + lines + b"content-type: application/json\r\nprediction-id: "
        return self._head
