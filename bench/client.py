"""A small HTTP/1.1 client for load: keep-alive connections, one request in flight on each, no more work than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")


class Answer(NamedTuple):
    """Status, header fields with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One connection; `request` may be called again when it has returned."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Send `body` as JSON and wait for the answer."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self._writer.write(head.encode() + body)
        raw = await self._reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw[:-4].decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        content = await self._reader.readexactly(int(fields.get("content-length", "0")))
        return Answer(int(status_line.split(" ", 2)[1]), fields, content)

    def close(self) -> None:
        """Drop the connection."""
        self._writer.close()


@asynccontextmanager
async def connections(url: str, count: int) -> AsyncIterator[list[Connection]]:
    """`count` open connections to the server at `url`."""
    parts = urlsplit(url)
    opened = [
        Connection(*await asyncio.open_connection(parts.hostname, parts.port), parts.netloc) for _ in range(count)
    ]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def for_each(
    url: str, items: Iterable[T], action: Callable[[Connection, T], Awaitable[None]], concurrency: int = 16
) -> None:
    """Apply `action` to every item, `concurrency` of them at a time, each on a connection of its own."""
    queue = iter(items)

    async def work(connection: Connection) -> None:
        for item in queue:
            await action(connection, item)

    async with connections(url, concurrency) as opened:
        try:
            async with asyncio.TaskGroup() as group:
                for connection in opened:
                    group.create_task(work(connection))
        except ExceptionGroup as failures:
            # The first failure ends the whole; the others are its consequences.
            raise failures.exceptions[0] from None
