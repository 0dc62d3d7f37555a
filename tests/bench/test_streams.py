from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import orjson
import pytest
import uvloop

from bench import streams
from bench.openloop import Generator, Plan
from bench.places import ROOT
from bench.streams import Stream, plans, send

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour"

MANY = 20


class Paths(Counter[str]):
    """Requests by their path."""

    def __init__(self) -> None:
        super().__init__()
        self.has_many = asyncio.Event()

    def add(self, path: str) -> None:
        self[path] += 1
        if self.total() >= MANY:
            self.has_many.set()


Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Main: TypeAlias = Callable[[str, Paths], Awaitable[None]]


def _counting(paths: Paths) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                paths.add(head.split(b" ")[1].decode())
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    return serve


def _run(main: Main) -> None:
    async def serve() -> None:
        paths = Paths()
        server = await asyncio.start_server(_counting(paths), "127.0.0.1", 0)
        async with server:
            await main(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", paths)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def test_streams_run_at_once_and_each_has_a_result() -> None:
    async def main(url: str, paths: Paths) -> None:
        slow, fast = await send([Plan(f"{url}/slow", b"", 100, 0.25, 4), Plan(f"{url}/fast", b"", 400, 0.25, 4)])

        assert 0 < slow.answered < fast.answered
        assert paths == {"/slow": slow.answered, "/fast": fast.answered}

    _run(main)


def test_requests_of_one_stream_go_to_all_of_its_addresses() -> None:
    async def main(url: str, paths: Paths) -> None:
        also = tuple(f"{url}/{name}" for name in "bc")
        result = await Generator(Plan(f"{url}/a", b"", 800, 0.25, 4, also)).run()

        assert set(paths) == {"/a", "/b", "/c"}
        assert sum(paths.values()) == result.answered

    _run(main)


def test_a_generator_that_is_stopped_waits_for_its_answers_only() -> None:
    async def main(url: str, paths: Paths) -> None:
        generator = Generator(Plan(url, b"", 500, 3600, 4))
        running = asyncio.ensure_future(generator.run())
        async with asyncio.timeout(10):
            await paths.has_many.wait()
            generator.stop()
            result = await running

        assert result.answered == result.offered >= MANY

    _run(main)


def test_each_stream_has_arrivals_of_its_own(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"{}")
    one = Stream("http://127.0.0.1:1/", str(body), 10.0)

    first, second = plans([one, one], 1.0)

    assert first.body == b"{}"
    assert first.seed != second.seed


def test_a_stream_survives_its_file() -> None:
    one = Stream("http://127.0.0.1:1/", "b", 10.0, also=("http://127.0.0.1:1/x",))

    (read,) = (Stream(**document) for document in orjson.loads(orjson.dumps([one])))

    assert (read.url, tuple(read.also)) == (one.url, one.also)


def test_a_load_that_cannot_connect_says_so() -> None:
    load = Stream("http://127.0.0.1:1/", Path(__file__).relative_to(ROOT).as_posix(), 10.0)

    with pytest.raises(RuntimeError, match=r"bench\.streams failed"):
        streams.run([load], 0.1)
