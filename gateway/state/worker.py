"""One worker as its supervisor sees it: a child process that is talked to over a Unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import httpx
import orjson

from gateway.errors import Unavailable
from gateway.state.process import ChildProcess
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

PRIVATE = "/worker"
"""Paths below this one are between a worker and its supervisor; the others are those of the ops port."""
LOOK_SECONDS = 0.05
"""Between two looks whether a worker that was just started can be talked to."""
PING_SECONDS = 5.0
HANG_SECONDS = 30.0
"""A worker that has not answered for as long is killed: the system goes on handing it its part of the connections."""


class Worker(ChildProcess):
    """The child, and the way to talk to it."""

    def __init__(self, index: int, socket: Path, command: list[str], environment: Mapping[str, str]) -> None:
        """`command` listens on `socket`; with `--versions` it takes up those alone."""
        super().__init__(f"worker {index}", command, environment)
        self.index = index
        self.is_open = False
        """Whether it was made like the others and has opened its ports."""
        self.restarts = 0
        self._bare_command = command
        # What is asked of a worker may take as long as a model takes to load; one that hangs is killed by `watch`.
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self.http = httpx.AsyncClient(transport=transport, timeout=None)  # noqa: S113

    @property
    def is_serving(self) -> bool:
        """Whether it takes requests, as far as is known."""
        return self.is_open and self.is_running

    def launch_with(self, versions: Collection[str] | None) -> None:
        """Start it without waiting, to take up these versions of the repository (`model/version`), None for all."""
        self.is_open = False
        self._command = self._bare_command
        if versions is not None:
            self._command = [*self._bare_command, "--versions", orjson.dumps(list(versions)).decode()]
        self.launch()

    async def has_loaded(self) -> bool:
        """True once it has its models and can be talked to, False if it exits before."""
        while self.is_running:
            with suppress(Unavailable):
                await self.state()
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    async def state(self) -> JsonObject:
        """As `WorkerState` tells it. Raises `Unavailable`."""
        document: JsonObject = (await self.ask("GET", f"{PRIVATE}/state", seconds=HANG_SECONDS)).json()
        return document

    async def ask(
        self,
        method: str,
        target: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> httpx.Response:
        """What it answers. Raises `Unavailable` if it does not, or not in so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                return await self.http.request(method, url_of(target), content=content, headers=headers)
        except TimeoutError as error:
            raise Unavailable(f"{self.name} has not answered for {seconds:g} s", retry_after=1.0) from error
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.name} does not answer: {type(error).__name__}", retry_after=1.0) from error

    async def watch(self) -> None:
        """Kill it whenever it hangs, for ever."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            pid = self.pid
            if self.is_serving:
                try:
                    await self.state()
                except Unavailable as error:
                    if self.is_serving and self.pid == pid:
                        self.kill(error.message)

    def kill(self, reason: str) -> None:
        """End it at once; whoever keeps it running starts it again."""
        self.is_open = False
        if self._process is not None and self.is_running:
            logger.error("killing %s: %s", self.name, reason)
            self._process.kill()

    def terminate(self) -> None:
        """Ask it to answer what is in flight and end."""
        if self._process is not None and self.is_running:
            self._process.terminate()

    async def is_gone(self) -> None:
        """Return when it has exited."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)


def url_of(target: str) -> httpx.URL:
    """What is asked for with a path and a query: the path without any `..` in it."""
    return httpx.URL("http://worker").copy_with(raw_path=target.encode())
