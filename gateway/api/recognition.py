"""What a connection needs to tell an inference request from the rest, cheaply and once for all connections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gateway.api.compression import accepted_encoding
from gateway.errors import InvalidRequest
from gateway.protocol.binary_codec import BINARY_HEADER
from gateway.protocol.parameters import TIMEOUT_HEADER, Schedule, schedule_of_header
from gateway.serving.call import Endpoint
from gateway.telemetry.trace_context import TRACEPARENT

TARGET = re.compile(rb"/v2/models/([A-Za-z0-9._-]+)(?:/versions/([0-9]+))?/infer\Z")
INFER_ROUTE = "/v2/models/{model}/infer"
VERSION_ROUTE = "/v2/models/{model}/versions/{version}/infer"
MAX_TARGETS = 4096
"""Request targets remembered, so that each is matched once."""

BINARY_FIELD = BINARY_HEADER.encode()
TRACE_FIELD = TRACEPARENT.encode()
TIMEOUT_FIELD = TIMEOUT_HEADER.encode()
UNUSUAL_HEADERS = frozenset((b"content-encoding", b"upgrade"))
"""Whoever sends one of these asks for more than the fast path does."""
NOTED_HEADERS = UNUSUAL_HEADERS | {
    *(b"accept-encoding", b"content-length", b"expect"),
    *(BINARY_FIELD, TRACE_FIELD, TIMEOUT_FIELD),
}

MAX_HEADS = 2048
"""Request heads remembered: a client sends few, but one that stamps each request anew sends no two alike."""
MAX_HEAD_BYTES = 2048


class Target(NamedTuple):
    """Whom a request is for."""

    model: str
    version: str | None

    @property
    def endpoint(self) -> Endpoint:
        """The infer endpoint that it names."""
        route = INFER_ROUTE if self.version is None else VERSION_ROUTE
        return Endpoint(route, route.format(model=self.model, version=self.version))


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


class HeadNotes:
    """What the header fields of the request that is being read say, as far as the fast path cares."""

    __slots__ = ("announced", "coding", "expects", "is_unusual", "length", "max_body_bytes", "schedule", "traceparent")

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.begin()

    def begin(self) -> None:
        """Another request."""
        self.length: int | None = None
        """Of the body, if the head announces it."""
        self.announced: str | None = None
        self.coding: str | None = None
        self.traceparent = ""
        self.schedule: Schedule | None = None
        """All as `Head` has them."""
        self.expects = False
        """The client waits for `100 Continue`."""
        self.is_unusual = False
        """The client asks for more than the fast path does."""

    def note(self, name: bytes, value: bytes) -> None:
        """One of the `NOTED_HEADERS`."""
        if name == b"content-length":
            # What announces that it is too large is refused before it is read, which Starlette's endpoint does.
            self.length = int(value)
            self.is_unusual |= self.length > self.max_body_bytes
        elif name == b"expect":
            self.expects = value.lower() == b"100-continue"
        elif name == b"accept-encoding":
            self.coding = accepted_encoding(value.decode("latin-1"))
        elif name == BINARY_FIELD:
            # Of several the first counts, as it does for Starlette.
            self.announced = self.announced if self.announced is not None else value.decode("latin-1")
        elif name == TRACE_FIELD:
            self.traceparent = self.traceparent or value.decode("latin-1")
        elif name == TIMEOUT_FIELD:
            self._note_timeout(value.decode("latin-1"))
        else:
            self.is_unusual = True

    def _note_timeout(self, value: str) -> None:
        if self.schedule is None:
            try:
                self.schedule = schedule_of_header(value)
            except InvalidRequest:
                # Starlette's endpoint says what is wrong with it.
                self.is_unusual = True

    def head(self, target: Target, fields: list[tuple[bytes, bytes]], length: int) -> Head:
        """What there is to know of the head, whose body has `length` bytes."""
        return Head(target, fields, length, self.announced, self.coding, self.traceparent, self.schedule)


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
    traceparent: str
    """The header of that name, empty without one."""
    schedule: Schedule | None
    """What its timeout asks of the queue."""


class ServerShare:
    """What the connections of a server share."""

    __slots__ = ("fields", "head", "heads", "targets")

    def __init__(self) -> None:
        self.targets: dict[bytes, Target | None] = {}
        self.heads: dict[bytes, Head] = {}
        """By their bytes: what the parser has read once it need not read again."""
        self.fields: list[tuple[bytes, bytes]] | None = None
        """Uvicorn's default headers, as they stand in `head`."""
        self.head = b""

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
        if fields is not self.fields:
            self.fields = fields
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
            self.head = b"HTTP/1.1 200 OK\r\n" + lines + b"content-type: application/json\r\nprediction-id: "
        return self.head
