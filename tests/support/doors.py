"""One gateway behind two ports in this process: the fast protocol, and uvicorn's own in front of Starlette alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from gateway.listener import Listener
from gateway.runtime.repository import scan
from gateway.settings import load_settings
from gateway.state.client import Store, connect
from gateway.wiring import Gateway
from tests.support.planes import NOWHERE
from tests.support.waiting import wait_until_async


@dataclass
class Doors:
    """Ports of the two doors, and the gateway behind them."""

    gateway: Gateway
    fast: int
    slow: int
    ops: int
    fast_listener: Listener


@asynccontextmanager
async def two_doors(
    models: Path, folder: Path, max_body_bytes: int = 4096, store: Store | None = None, **options: Any
) -> AsyncIterator[Doors]:
    """Both doors open, and the ops port. Without a store routes are the default ones; nothing is logged."""
    fixed = {"models": models, "data_dir": folder, "threads": 1, "sample_rate": 0.0}
    settings = load_settings({**fixed, "max_body_bytes": max_body_bytes, **options})
    with ThreadPoolExecutor(2) as executor, ExitStack() as stack:
        gateway = Gateway(settings, store or connect(NOWHERE), b"a key for this test alone", "cpu", executor)
        gateway.loader.load_all(scan(models), gateway.registry)
        gateway.routes.begin()
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        ports = [sock.getsockname()[1] for sock in sockets]
        fast = Listener(gateway.public_app(), sockets[0], 1.0, gateway.fast_protocol())
        slow = Listener(gateway.public_app(), sockets[1], 1.0)
        ops = Listener(gateway.ops_app(), sockets[2], 1.0)
        async with fast.running(), slow.running(), ops.running():
            await wait_until_async(lambda: fast.started and slow.started and ops.started)
            yield Doors(gateway, ports[0], ports[1], ports[2], fast)
            await gateway.registry.close()
        if gateway.tracing is not None:
            await gateway.tracing.close()


@dataclass(frozen=True)
class HttpAnswer:
    """What came back for one request, as the client's parser sees it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


async def exchange(port: int, pieces: list[bytes], heads: list[bool], seconds: float = 10.0) -> list[HttpAnswer]:
    """Send the pieces one after the other and read an answer for each of `heads` (whether it has no body).

    Fewer answers come back if the server closes first.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers: list[HttpAnswer] = []
    try:
        async with asyncio.timeout(seconds):
            sending = asyncio.create_task(_send(writer, pieces))
            for is_head in heads:
                answer = await _read_answer(reader, is_head=is_head)
                if answer is None:
                    break
                answers.append(answer)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return answers


async def converse(port: int, requests: list[bytes]) -> list[HttpAnswer]:
    """Send each request in one piece, the next when the last is answered, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers: list[HttpAnswer] = []
    async with asyncio.timeout(10.0):
        for request in requests:
            writer.write(request)
            answer = await _read_answer(reader, is_head=request.startswith(b"HEAD"))
            assert answer is not None
            answers.append(answer)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return answers


async def _send(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        # A turn of the loop between pieces, so that they arrive as pieces.
        await asyncio.sleep(0)


async def _read_answer(reader: asyncio.StreamReader, *, is_head: bool) -> HttpAnswer | None:
    while True:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        status_line, *lines = raw[:-4].decode("latin-1").split("\r\n")
        status = int(status_line.split(" ")[1])
        if status != 100:
            break
    fields = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    length = 0 if is_head else int(dict(fields).get("content-length", "0"))
    return HttpAnswer(status, tuple(sorted(fields)), await reader.readexactly(length))


@contextmanager
def doors_beside(models: Path, folder: Path, max_body_bytes: int = 2**20, **options: Any) -> Iterator[Doors]:
    """Both doors open on a loop in a thread of its own, for clients that block."""
    opened: Future[tuple[Doors, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        try:
            async with two_doors(models, folder, max_body_bytes, **options) as doors:
                closing = asyncio.Event()
                opened.set_result((doors, asyncio.get_running_loop(), closing))
                await closing.wait()
        except BaseException as error:
            if not opened.done():
                opened.set_exception(error)
            raise

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(uvloop.run, serve())
        doors, loop, closing = opened.result()
        yield doors
        loop.call_soon_threadsafe(closing.set)
        served.result()
