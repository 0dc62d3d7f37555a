"""A collector that speaks OTLP/HTTP and keeps what it is sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.listener import Listener

KINDS = {1: "internal", 2: "server"}
STATUSES = {0: "unset", 2: "error"}


@dataclass(frozen=True)
class SeenSpan:
    """A span as the collector got it; ids in hex, times in Unix nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: tuple[str, str]
    resource: dict[str, Any]


class Collector:
    """Takes spans at `url`, when the gate is open, with the status that the test wants."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[SeenSpan] = []
        self.status = 200
        self.headers: list[dict[str, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, request: Request) -> Response:
        """`POST /v1/traces`."""
        body = await request.body()
        self.headers.append(dict(request.headers))
        await self.gate.wait()
        if self.status == 200:
            self.spans += _spans(ExportTraceServiceRequest.FromString(body))
        return Response(status_code=self.status)

    def servers(self) -> list[SeenSpan]:
        """The spans of requests, in the order in which they began."""
        return sorted((span for span in self.spans if span.kind == "server"), key=lambda span: span.start)

    def children(self, parent: SeenSpan) -> dict[str, SeenSpan]:
        """By name."""
        return {span.name: span for span in self.spans if span.parent_id == parent.span_id}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of this machine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        collector = Collector(f"http://127.0.0.1:{sock.getsockname()[1]}")
        app = Starlette(routes=[Route("/v1/traces", collector.take, methods=["POST"])])
        async with Listener(app, sock, 1.0).running():
            yield collector
            collector.gate.set()


def _spans(message: ExportTraceServiceRequest) -> list[SeenSpan]:
    return [
        SeenSpan(
            name=span.name,
            kind=KINDS[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            attributes=_values(span.attributes),
            status=(STATUSES[span.status.code], span.status.message),
            resource=_values(group.resource.attributes),
        )
        for group in message.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
