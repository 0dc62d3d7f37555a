"""A worker's connection to the engine: made again when it breaks, and with it every version that the worker uses."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from gateway.errors import (
    GatewayError,
    InferenceFailed,
    NotEnoughMemory,
    PayloadTooLarge,
    StartupError,
    Unavailable,
)
from gateway.protocol.parameters import Schedule
from gateway.runtime.engine.arena import Arena, attach_memory
from gateway.runtime.engine.channel import Channel, close_descriptor, connect
from gateway.runtime.engine.messages import (
    Cancel,
    Done,
    Failed,
    Hello,
    Load,
    Loaded,
    Message,
    Refused,
    Run,
    Unload,
    Welcome,
)
from gateway.runtime.engine.tensors import Packed, row_bytes, unpack
from gateway.runtime.session import Device
from gateway.types import Array, ModelKey

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.1
"""Between two tries to connect to an engine that is being started."""
ANSWER_SECONDS = 30.0
"""An engine that does not even greet for as long is no use; the thread that greets runs only what is short."""
CONNECT_SECONDS = 60.0
"""Longest wait of a load for an engine that is being started."""
ROOM_DIVISOR = 8
"""Of the arena, outputs of one message get at most this part beforehand. Larger ones come in memory of their
own."""
GONE = "the engine process has ended and is being started again"
RETRY_AFTER_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class RemoteRun:
    """One message on its way: rows, and who wants to know what becomes of them."""

    session: RemoteSession
    inputs: Packed
    rows: int
    enqueued: float
    schedule: Schedule | None
    on_end: Callable[[list[Array] | GatewayError, float | None, int], None]
    """Called once, on the event loop, with the outputs or the error, when the run began if it did, and the rows of the
    device's batch, 0 if another counts them."""
    number: int = 0
    block: int = 0


class RemoteSession:
    """A version in the engine. On a new connection it is loaded again, under another handle."""

    def __init__(self, client: EngineClient, key: ModelKey, loaded: Loaded, manifest: bytes) -> None:
        self.key = key
        self.loaded = loaded
        """What the engine said of it first."""
        self.signature = loaded.signature
        self.manifest = manifest
        """As JSON, as it was verified; empty without one."""
        self.batch_rows = loaded.batch_rows
        """That a run may have now."""
        self.handle = loaded.handle
        self.problem: str | None = None
        """Why nothing can be run now."""
        self._client = client
        self._row_bytes = row_bytes(self.signature.outputs)

    def room(self, rows: int) -> int:
        """Bytes that the outputs of as many rows are likely to take."""
        return rows * self._row_bytes

    def learn(self, rows: int, size: int) -> None:
        """As many rows had outputs of `size` bytes."""
        self._row_bytes = max(self._row_bytes, -(-size // rows))

    def send(self, run: RemoteRun) -> None:
        """Send rows, now or when there is room for them."""
        if self.problem is None:
            self._client.link.run(run)
        else:
            run.on_end(Unavailable(self.problem, retry_after=RETRY_AFTER_SECONDS), None, 0)

    def cancel(self, run: RemoteRun) -> None:
        """Nobody waits for it any more; it ends nevertheless."""
        self._client.link.cancel(run)

    def close(self) -> None:
        """The engine may free the memory, unless others use it. Called on any thread."""
        self._client.unload(self)


class Link:
    """One connection with its arena. Both are thrown away when it breaks."""

    def __init__(self, path: Path, arena_bytes: int, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called before anybody is told. Raises `OSError` if nobody listens."""
        sock = connect(path)
        try:
            self._arena = Arena(arena_bytes)
        except OSError:
            sock.close()
            raise
        self._channel = Channel(sock, self._take, self._lose)
        self._on_lost = on_lost
        self._numbers = count(1)
        self._loads: dict[int, asyncio.Future[tuple[Loaded, bytes]]] = {}
        self._running: dict[int, RemoteRun] = {}
        self._held: deque[RemoteRun] = deque()
        """For these the arena had no room; oldest first. Bounded by what the batchers may have in flight."""
        self._loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[Welcome] = self._loop.create_future()
        self.lost = asyncio.Event()

    async def greet(self) -> Device:
        """What the engine runs on. Raises `OSError` if it does not say."""
        self._channel.send(Hello(self._arena.size), self._arena.descriptor)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return (await self._welcome).device
        except TimeoutError:
            self.close()
            raise

    def close(self) -> None:
        """Whoever waits for something is told."""
        self._channel.close()

    async def load(self, key: ModelKey) -> tuple[Loaded, bytes]:
        """What the engine says of it, and its manifest.

        Raises `StartupError` if the engine refuses or ends, `NotEnoughMemory` if it has no room.
        """
        if self.lost.is_set():
            raise StartupError(GONE)
        number = next(self._numbers)
        loading: asyncio.Future[tuple[Loaded, bytes]] = self._loop.create_future()
        self._loads[number] = loading
        self._channel.send(Load(number, *key))
        return await loading

    def unload(self, handle: int) -> None:
        """Nothing may run on it afterwards."""
        self._channel.send(Unload(handle))

    def run(self, run: RemoteRun) -> None:
        """Send rows, or hold them until those before them have left the arena."""
        if run.inputs.size > self._arena.size:
            message = (
                f"the inputs take {run.inputs.size} bytes, and the memory that is shared with the engine process has "
                f"{self._arena.size}: send fewer rows in a request, or raise engine_arena_bytes"
            )
            run.on_end(PayloadTooLarge(message), None, 0)
        elif self._held or not self._send(run):
            self._held.append(run)

    def cancel(self, run: RemoteRun) -> None:
        """Of one that is held, or queued in the engine, nothing is run."""
        if run in self._held:
            self._held.remove(run)
            run.on_end(Unavailable("the callers left"), None, 0)
        elif run.number in self._running:
            self._channel.send(Cancel(run.number))

    def _send(self, run: RemoteRun) -> bool:
        size = run.inputs.size
        room = min(run.session.room(run.rows), self._arena.size // ROOM_DIVISOR, self._arena.size - size)
        block = self._arena.take(size + room)
        if block is None:
            return False
        run.block = block
        run.inputs.write(self._arena.memory, block)
        run.number = next(self._numbers)
        self._running[run.number] = run
        schedule = run.schedule or Schedule()
        message = Run(
            run.number,
            run.session.handle,
            run.rows,
            *(block, run.inputs.places),
            *(block + size, room),
            run.enqueued,
            *(schedule.priority, schedule.timeout),
        )
        try:
            self._channel.send(message)
        except ValueError as error:
            self._settle(run, InferenceFailed(f"the engine process cannot be told: {error}"), None)
        return True

    def _take(self, message: Message, descriptor: int | None) -> None:
        if isinstance(message, Done):
            self._end(self._running[message.number], self._outputs(message, descriptor), message)
        elif isinstance(message, Failed):
            self._end(self._running[message.number], message.error, None)
        elif isinstance(message, Loaded):
            loading = self._loads.pop(message.number)
            if loading.cancelled():
                self.unload(message.handle)
                close_descriptor(descriptor)
            else:
                loading.set_result((message, _content(descriptor, message.manifest_bytes)))
        elif isinstance(message, Refused):
            kind = NotEnoughMemory if message.is_for_memory else StartupError
            self._refuse(self._loads.pop(message.number), kind(message.problem))
        elif isinstance(message, Welcome):
            self._welcome.set_result(message)
        else:
            raise TypeError(f"an engine does not send {type(message).__name__}")

    def _outputs(self, message: Done, descriptor: int | None) -> list[Array]:
        run = self._running[message.number]
        specs = run.session.signature.outputs
        run.session.learn(run.rows, message.size)
        run.session.batch_rows = message.chosen_rows
        if descriptor is not None:
            return unpack(specs, message.places, attach_memory(descriptor, message.size), 0)
        # Answers may be written, and rows logged, after the block has gone to the next.
        start = run.block + run.inputs.size
        return [array.copy() for array in unpack(specs, message.places, self._arena.memory, start)]

    def _end(self, run: RemoteRun, outcome: list[Array] | GatewayError, done: Done | None) -> None:
        self._settle(run, outcome, done)
        while self._held and self._send(self._held[0]):
            self._held.popleft()

    def _settle(self, run: RemoteRun, outcome: list[Array] | GatewayError, done: Done | None) -> None:
        del self._running[run.number]
        self._arena.give_back(run.block)
        # Later, so that nothing that an answer brings about can break the connection.
        self._loop.call_soon(run.on_end, outcome, done and done.started, done.batch_rows if done else 0)

    def _refuse(self, loading: asyncio.Future[tuple[Loaded, bytes]], problem: StartupError) -> None:
        if not loading.cancelled():
            loading.set_exception(problem)

    def _lose(self) -> None:
        self.lost.set()
        self._on_lost()
        if not self._welcome.done():
            self._welcome.set_exception(ConnectionError(GONE))
        for loading in self._loads.values():
            self._refuse(loading, StartupError("the engine process ended while it loaded the model"))
        self._loads.clear()
        runs = [*self._running.values(), *self._held]
        self._running.clear()
        self._held.clear()
        for run in runs:
            self._loop.call_soon(run.on_end, Unavailable(GONE, retry_after=RETRY_AFTER_SECONDS), None, 0)


class EngineClient:
    """What a worker has of the engine."""

    link: Link
    device: Device
    """What the engine runs on."""

    def __init__(self, path: Path, arena_bytes: int) -> None:
        """The engine listens at `path`; made on the event loop that everything but loading happens on."""
        self._path = path
        self._arena_bytes = arena_bytes
        self._loop = asyncio.get_running_loop()
        self._connected = asyncio.Event()
        self._sessions: list[RemoteSession] = []
        """In the order in which they were loaded, and are again."""

    async def connect(self) -> None:
        """Before anything else. Raises `StartupError` if there is no engine in time."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self.link = await self._open()
        except TimeoutError as error:
            raise StartupError(f"no engine process answers at {self._path}") from error
        self._connected.set()

    async def keep_connected(self) -> None:
        """For ever. After an end of the engine, load again what was loaded."""
        while True:
            await self.link.lost.wait()
            logger.error("%s; requests are refused meanwhile", GONE)
            self.link = await self._open()
            for session in list(self._sessions):
                await self._load_again(session)
            if not self.link.lost.is_set():
                self._connected.set()
                logger.info("the engine process is back")

    def close(self) -> None:
        """The end: the engine frees what this worker alone has used."""
        self.link.close()

    def load(self, key: ModelKey) -> RemoteSession:
        """Have the engine load a version; blocks, so call it on a thread other than the loop's.

        Raises `StartupError` with the engine's reason.
        """
        return asyncio.run_coroutine_threadsafe(self._load(key), self._loop).result()

    def unload(self, session: RemoteSession) -> None:
        """Called on any thread."""
        self._loop.call_soon_threadsafe(self._unload, session)

    async def _load(self, key: ModelKey) -> RemoteSession:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connected.wait()
        except TimeoutError as error:
            raise StartupError(GONE) from error
        link = self.link
        session = RemoteSession(self, key, *await link.load(key))
        self._sessions.append(session)
        if link.lost.is_set():
            # In the turn in between: it is loaded again with the others.
            session.problem = GONE
        return session

    async def _load_again(self, session: RemoteSession) -> None:
        link = self.link
        try:
            loaded, _ = await link.load(session.key)
        except StartupError as error:
            logger.error("%s is not back: %s", session.key, error)
            session.problem = str(error)
            return
        if link.lost.is_set():
            return
        if session not in self._sessions:
            link.unload(loaded.handle)
        elif loaded.digest != session.loaded.digest:
            link.unload(loaded.handle)
            session.problem = "its file has changed since it was loaded; unload it and load it again"
        else:
            session.handle = loaded.handle
            session.problem = None

    def _unload(self, session: RemoteSession) -> None:
        self._sessions.remove(session)
        if session.problem is None:
            self.link.unload(session.handle)

    def _lost(self) -> None:
        self._connected.clear()
        for session in self._sessions:
            session.problem = GONE

    async def _open(self) -> Link:
        while True:
            try:
                link = Link(self._path, self._arena_bytes, self._lost)
                self.device = await link.greet()
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return link


def _content(descriptor: int | None, size: int) -> bytes:
    """What lies in the memory that came."""
    if descriptor is None:
        return b""
    with attach_memory(descriptor, size) as memory:
        return memory[:]
