from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import uvloop

from bench.cpu import usage
from bench.openloop import Generator, OpenResult, Plan, arrivals
from bench.process import ServerProcess, accepts_connections, free_port

BODY = b'{"x": 1}'

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _load(serve: Serve, connections: int = 256) -> OpenResult:
    """A hundred requests or so in a quarter of a second."""

    async def main() -> OpenResult:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            return await Generator(Plan(url, BODY, rate=400, seconds=0.25, connections=connections)).run()

    return _run(main())


def _run(coroutine: Coroutine[None, None, OpenResult]) -> OpenResult:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def _server(answer: Callable[[], Awaitable[bytes | None]]) -> Serve:
    """Gives `answer()` to each request, in two pieces, and hangs up where that is None."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(len(BODY))
                content = await answer()
                if content is None:
                    break
                writer.write(content[:20])
                await asyncio.sleep(0)
                writer.write(content[20:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    return serve


def _cycle(*answers: bytes | None) -> Serve:
    endless = itertools.cycle(answers)

    async def answer() -> bytes | None:
        return next(endless)

    return _server(answer)


def _answer(status: int, head: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\n{head}\r\nfour".encode()


def test_even_arrivals_come_at_the_rate() -> None:
    assert list(arrivals(Plan("", b"", 4, 1, is_poisson=False))) == [0, 0.25, 0.5, 0.75]


def test_poisson_arrivals_come_at_the_rate_on_average_and_again_the_same() -> None:
    plan = Plan("", b"", 1000, 10)
    times = list(arrivals(plan))

    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times == list(arrivals(plan))


def test_every_request_is_accounted_for_by_its_answer() -> None:
    result = _load(_cycle(_answer(200), _answer(429, "Retry-After: 1\r\n"), _answer(503), _answer(500)))

    each = result.offered / 4
    counted = (result.answered, result.refused, result.refused_with_retry_after, result.failed)
    assert counted == pytest.approx((each, 2 * each, each, each), abs=2)
    assert result.answered + result.refused + result.failed == result.offered
    assert (result.lost, result.unsent, result.unanswered) == (0, 0, 0)
    assert result.latency["p50_us"] > 0
    assert result.refusal_latency["p50_us"] > 0


def test_a_connection_that_breaks_is_replaced() -> None:
    result = _load(_cycle(None, _answer(200), _answer(200)), connections=4)

    assert result.lost > 0
    assert result.lost + result.answered == result.offered


def test_waiting_for_a_connection_is_part_of_the_latency() -> None:
    """One request is on the connection; the others, which a closed loop would not have sent, wait in line."""
    pauses = itertools.chain([0.3], itertools.repeat(0.0))

    async def answer() -> bytes:
        await asyncio.sleep(next(pauses))
        return _answer(200)

    result = _load(_server(answer), connections=1)

    assert result.answered == result.offered
    assert result.latency["p50_us"] > 100_000
    assert result.send_lag["p50_us"] > 100_000
    assert result.goodput == 0


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[tuple[ServerProcess, str]]:
    port = free_port()
    command = [sys.executable, "bench/peers/echo/serve.py"]
    process = ServerProcess(command, {**os.environ, "PORT": str(port)}, tmp_path / "log.txt")
    try:
        process.wait_until(lambda: accepts_connections(port), 60)
        yield process, f"http://127.0.0.1:{port}/"
    finally:
        process.stop()


def test_a_second_against_the_echo(echo: tuple[ServerProcess, str]) -> None:
    process, url = echo
    before = usage(process.pid)

    result = _run(Generator(Plan(url, BODY, rate=300, seconds=1, connections=8)).run())

    assert result.answered == result.offered > 200
    assert result.goodput <= result.answered
    assert usage(process.pid).tree_seconds >= before.tree_seconds
