"""Engines and workers: in this loop, where a test can look inside, or in processes of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.engine_process import EngineProcess
from gateway.runtime.engine.client import EngineClient, RemoteSession
from gateway.runtime.engine.remote import EngineLoader, RemoteBatcher
from gateway.runtime.engine.server import Engine
from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import survey, usable
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.work import Batch
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import Array, ModelKey
from tests.support.batching import Caller
from tests.support.running import clean_environment
from tests.support.waiting import cancel, wait_until_async

ARENA_BYTES = 2**20


@dataclass
class EngineWorker:
    """One connection, with what a gateway has around it."""

    models: Path
    client: EngineClient
    loader: EngineLoader
    metrics: GatewayMetrics

    async def load(self, name: str, version: str = "1") -> ModelVersion:
        """As `Loader.load`, on a thread."""
        folder = usable(survey(self.models)[ModelKey(name, version)])
        return await asyncio.to_thread(self.loader.load, folder)

    def device_batches(self, name: str) -> tuple[int, float]:
        """Runs of the device that this worker counted, and their rows."""
        histogram = self.metrics.version(ModelKey(name, "1")).engine_batch_rows
        return int(histogram.counts.sum()), histogram.total


def _answer(version: ModelVersion, batch: Batch) -> None:
    """Give each caller its rows, on whatever axis they lie."""
    for work in batch.works:
        assert isinstance(work, Caller)
        if not work.is_cancelled:
            work.answers.append([version.layout.output_of(batch, work, index) for index in range(len(batch.outputs))])


@asynccontextmanager
async def engine_worker(path: Path, models: Path, arena_bytes: int = ARENA_BYTES) -> AsyncIterator[EngineWorker]:
    """A connection that is kept up."""
    client = EngineClient(path, arena_bytes)
    await client.connect()
    keeping = asyncio.create_task(client.keep_connected())
    metrics = GatewayMetrics()
    with ThreadPoolExecutor(1) as pool:
        loader = EngineLoader("cpu", 1, pool, Scheduler(1), 30.0, _answer, client=client, metrics=metrics)
        try:
            yield EngineWorker(models, client, loader, metrics)
        finally:
            await cancel(keeping)
            client.close()


@asynccontextmanager
async def engine_here(models: Path, path: Path) -> AsyncIterator[Engine]:
    """An engine in this loop."""
    with ThreadPoolExecutor(2) as pool:
        engine = Engine(models, lambda on_batch: Loader("cpu", 1, pool, Scheduler(2), 30.0, on_batch))
        with engine.listening(path):
            yield engine


@contextmanager
def engine_process(models: Path, data_dir: Path) -> Iterator[EngineProcess]:
    """An engine as a child."""
    child = EngineProcess(
        data_dir,
        clean_environment(GATEWAY_MODELS=str(models), GATEWAY_DATA_DIR=str(data_dir), GATEWAY_THREADS="1"),
    )
    child.start()
    try:
        yield child
    finally:
        child.stop()


async def answer_of(version: ModelVersion, inputs: dict[str, Array], rows: int | None = None) -> list[Array]:
    """Submit and wait."""
    caller = Caller(inputs, rows)
    version.batcher.submit(caller)
    await wait_until_async(lambda: caller.is_answered)
    return caller.answer


def sent_messages(version: ModelVersion) -> int:
    """Messages that are on their way."""
    assert isinstance(version.batcher, RemoteBatcher)
    return len(version.batcher._sent)


def session_of(version: ModelVersion) -> RemoteSession:
    assert isinstance(version.session, RemoteSession)
    return version.session


def turns_of(count: int) -> dict[str, Array]:
    """A row that keeps the model `busy` at work for some 20 microseconds each."""
    return {"turns": np.array([[count]], np.int64)}


WORKER = """
import asyncio, sys
from pathlib import Path
from tests.support.engines import answer_of, engine_worker, turns_of

async def main(path, models):
    async with engine_worker(Path(path), Path(models)) as worker:
        version = await worker.load("busy")
        loop = asyncio.get_running_loop()
        print("ready", flush=True)
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            (output,) = await answer_of(version, turns_of(int(line)))
            print(output[0, 0], *worker.device_batches("busy"), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class WorkerProcess:
    """A worker in a process of its own, which asks the model `busy` what it is told."""

    def __init__(self, path: Path, models: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(path), str(models)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            cwd=Path(__file__).parents[2],
        )
        assert self.read() == ["ready"]

    def ask(self, turns: int) -> None:
        """Send one row."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{turns}\n")
        self.process.stdin.flush()

    def read(self) -> list[str]:
        """The answer, and the device's runs that this worker has counted so far, and their rows."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def stop(self) -> None:
        """The end of it."""
        self.process.kill()
        self.process.communicate()
