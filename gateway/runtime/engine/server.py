"""The engine: owns the sessions of one device and runs the rows of all workers that connect.

What a worker sends in one message is one `Work` here, so the same batcher that merges callers in a worker merges the
messages of workers, by the same rules: oldest first, one shape a run, a failing run repeated message by message.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from gateway.errors import GatewayError, InferenceFailed, NotEnoughMemory, StartupError, Unavailable
from gateway.protocol.parameters import DEFAULT_PRIORITY, Schedule
from gateway.runtime.engine import messages
from gateway.runtime.engine.arena import attach_memory, create_memory
from gateway.runtime.engine.channel import Channel, is_same_user, listen
from gateway.runtime.engine.messages import Cancel, Done, Hello, Load, Message, Refused, Run, Unload, Welcome
from gateway.runtime.engine.tensors import pack, unpack
from gateway.runtime.memory import MEBIBYTE, give_back
from gateway.runtime.registry import Loader, ModelVersion, Registry
from gateway.runtime.repository import survey, usable
from gateway.runtime.session import Device
from gateway.runtime.work import Batch, Work
from gateway.types import Array, ModelKey

logger = logging.getLogger(__name__)


class Resident:
    """A version in memory, or on its way there, and how often it was asked for."""

    def __init__(self, loading: asyncio.Task[ModelVersion]) -> None:
        self.loading = loading
        self.users = 0

    @property
    def version(self) -> ModelVersion:
        """Once it is loaded."""
        return self.loading.result()


class Engine:
    """The versions that at least one worker uses, each once."""

    def __init__(self, models: Path, make_loader: Callable[[Callable[[ModelVersion, Batch], None]], Loader]) -> None:
        """`make_loader` gets what is to be done with finished batches."""
        self._models = models
        self._loader = make_loader(_answer)
        self.device: Device = self._loader.device
        self.registry = Registry()
        """What workers use, for those who look after what is loaded."""
        # Always the same one: of what a thread frees, the C library keeps some for this thread's next allocations.
        self._thread = ThreadPoolExecutor(1, "models")
        self._residents: dict[ModelKey, Resident] = {}
        self._one_at_a_time = asyncio.Lock()
        """Loads measure how fast a model is."""
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def listening(self, path: Path) -> Iterator[None]:
        """Take workers that connect to the Unix socket at `path`. Raises `StartupError` if it cannot be had."""
        try:
            sock = listen(path)
        except OSError as error:
            raise StartupError(f"the engine's socket {path}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        loop.add_reader(sock.fileno(), self._accept, sock)
        try:
            yield
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            logger.warning("a worker could not be let in: %s", error)
            return
        if is_same_user(sock):
            Worker(self, sock)
        else:
            sock.close()

    async def acquire(self, key: ModelKey) -> Resident:
        """A loaded version; whoever asks at the same time gets the same. Raises what `Loader.load` raises."""
        resident = self._residents.get(key)
        if resident is None:
            resident = self._residents[key] = Resident(asyncio.create_task(self._load(key)))
        resident.users += 1
        try:
            await resident.loading
        except Exception:
            if self._residents.get(key) is resident:
                del self._residents[key]
            raise
        return resident

    def release(self, resident: Resident) -> None:
        """Of a version that nobody needs any more the memory is freed, once what is queued is answered."""
        resident.users -= 1
        if not resident.users:
            version = resident.version
            del self._residents[version.key]
            self.registry.remove(version.key)
            self.begin(self._free(version))

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Do it beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, key: ModelKey) -> ModelVersion:
        async with self._one_at_a_time:
            loop = asyncio.get_running_loop()
            version = await loop.run_in_executor(self._thread, self._load_now, key)
        self.registry.add(version)
        logger.info("loaded %s, which holds %.1f MiB", key, version.memory_bytes / MEBIBYTE)
        return version

    def _load_now(self, key: ModelKey) -> ModelVersion:
        on_disk = survey(self._models)
        if key not in on_disk:
            raise StartupError(f"{self._models} holds no {key} any more")
        return self._loader.load(usable(on_disk[key]))

    async def _free(self, version: ModelVersion) -> None:
        await version.close()
        await asyncio.to_thread(give_back)
        logger.info("unloaded %s", version.key)


class Worker:
    """One connection: what it may use, and what it waits for."""

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self._engine = engine
        self._channel = Channel(sock, self._take, self._leave)
        self._memory: mmap.mmap | None = None
        self._handles: dict[int, Resident] = {}
        self._new_handle = count(1)
        self._works: dict[int, RemoteWork] = {}
        """By number, from its message until its answer."""

    def _take(self, message: Message, descriptor: int | None) -> None:
        if isinstance(message, Run):
            self._run(message)
        elif isinstance(message, Load):
            self._engine.begin(self._load(message))
        elif isinstance(message, Unload):
            self._engine.release(self._handles.pop(message.handle))
        elif isinstance(message, Cancel):
            self._cancel(message.number)
        elif isinstance(message, Hello) and descriptor is not None:
            self._memory = attach_memory(descriptor, message.arena_bytes)
            self._channel.send(Welcome(self._engine.device))
        else:
            raise TypeError(f"a worker does not send {type(message).__name__}")

    async def _load(self, message: Load) -> None:
        try:
            resident = await self._engine.acquire(ModelKey(message.name, message.version))
        except Exception as error:
            if not isinstance(error, StartupError | OSError):
                logger.exception("loading %s/%s failed", message.name, message.version)
            self._channel.send(Refused(message.number, str(error), isinstance(error, NotEnoughMemory)))
            return
        if self._channel.is_closed:
            self._engine.release(resident)
            return
        handle = next(self._new_handle)
        descriptor, size = _manifest_of(resident.version)
        try:
            self._channel.send(messages.loaded(message.number, handle, resident.version, size), descriptor)
        except ValueError as error:
            self._engine.release(resident)
            self._channel.send(Refused(message.number, f"too much to tell from the engine process: {error}"))
            return
        self._handles[handle] = resident

    def _run(self, message: Run) -> None:
        assert self._memory is not None  # noqa: S101 -- a worker says hello first
        version = self._handles[message.handle].version
        specs = version.signature.inputs
        arrays = unpack(specs, message.places, self._memory, message.start)
        inputs = {spec.name: values for spec, values in zip(specs, arrays, strict=True)}
        work = RemoteWork(self, version, message, inputs)
        self._works[message.number] = work
        try:
            version.batcher.submit(work)
        except GatewayError as error:
            work.fail(error)
        else:
            if message.timeout is None:
                # Its callers have waited in the worker already.
                work.enqueued = message.enqueued

    def _cancel(self, number: int) -> None:
        work = self._works.get(number)
        if work is not None and work.is_queued:
            work.version.batcher.discard(work)
            work.fail(Unavailable("the callers left"))

    def answer(self, work: RemoteWork, outputs: list[Array], started: float, batch_rows: int) -> bool:
        """Write the outputs where the worker finds them; whether it still is there."""
        message = work.message
        if message.number not in self._works:
            return False
        packed = pack(work.version.signature.outputs, outputs)
        descriptor = None
        if packed.size <= message.room:
            assert self._memory is not None  # noqa: S101 -- as above
            packed.write(self._memory, message.room_start)
        else:
            descriptor, memory = create_memory(packed.size)
            packed.write(memory, 0)
        chosen_rows = work.version.batcher.chosen_rows
        done = Done(message.number, packed.places, packed.size, started, batch_rows, chosen_rows)
        self._channel.send(done, descriptor)
        del self._works[message.number]
        return True

    def fail(self, work: RemoteWork, error: GatewayError) -> None:
        """Tell the worker, unless it knows already."""
        if self._works.pop(work.message.number, None) is not None:
            self._channel.send(messages.failed(work.message.number, error))

    def _leave(self) -> None:
        """Nobody waits any more: what is queued is dropped, and the memory goes when the last run is over."""
        self._memory = None
        works = list(self._works.values())
        self._works.clear()
        for work in works:
            work.version.batcher.discard(work)
        for resident in self._handles.values():
            self._engine.release(resident)
        self._handles.clear()


class RemoteWork(Work):
    """The rows of one message."""

    def __init__(self, worker: Worker, version: ModelVersion, message: Run, inputs: dict[str, Array]) -> None:
        super().__init__(inputs, message.rows)
        self.worker = worker
        self.version = version
        self.message = message
        if message.priority != DEFAULT_PRIORITY or message.timeout is not None:
            self.schedule = Schedule(message.priority, message.timeout)

    def fail(self, error: GatewayError) -> None:
        """Tell the worker."""
        self.worker.fail(self, error)


def _manifest_of(version: ModelVersion) -> tuple[int | None, int]:
    """The descriptor of memory that holds it, and its size there."""
    if version.manifest is None:
        return None, 0
    content = version.manifest.model_dump_json(exclude_unset=True).encode()
    descriptor, memory = create_memory(len(content))
    with memory:
        memory[:] = content
    return descriptor, len(content)


def _answer(version: ModelVersion, batch: Batch) -> None:
    """Give each worker its rows. One for whom that fails gets the error alone."""
    untold = batch.rows
    for work in batch.works:
        assert isinstance(work, RemoteWork)  # noqa: S101 -- nothing else is submitted here
        outputs = [version.layout.output_of(batch, work, index) for index in range(len(batch.outputs))]
        try:
            if work.worker.answer(work, outputs, batch.started, untold):
                untold = 0
        except (ValueError, OSError, MemoryError) as error:
            logger.exception("the outputs of %s could not be handed over", work.version.key)
            work.fail(InferenceFailed(f"the outputs could not be handed over: {error}"))
    queued = sum([batch.started - work.enqueued for work in batch.works])
    ended = batch.finished
    version.statistics.record(len(batch.works), batch.rows, queued, batch.rows, batch.started, ended, ended)
