"""Where the CPU time of a request goes, part by part, and what the model costs by itself.

The gateway as it is served, in one process and without sockets: fake transports send what wrk sends, and take the
answers. A load of n connections sends n requests at once and waits for all answers. The bare prototype and a gateway
whose route has one version take turns with it, timed part by part and, since timing disturbs, not timed.
"""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from email.utils import formatdate
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import orjson
from onnxruntime.capi.onnxruntime_pybind11_state import InferenceSession

from bench import model
from bench.peers.prototype.serve import Batcher, PrototypeProtocol, unused
from bench.results import IN_PROCESS, Measurement
from bench.servers import ROUTE
from bench.stopwatch import REST, Point, Stopwatch, TimerCost, replaced, timer_cost, timing
from gateway.api import slot
from gateway.api.fastpath import FastProtocol
from gateway.lifecycle import GC_THRESHOLDS
from gateway.listener import Listener
from gateway.protocol.fast_json import FastDecoder, Template
from gateway.runtime import batcher
from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.batching import Batcher as SharedBatcher
from gateway.runtime.repository import scan
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.session import OnnxSession
from gateway.serving.dataplane import DataPlane
from gateway.serving.timing import Timing
from gateway.settings import Settings
from gateway.state.client import connect
from gateway.state.log_writer import LogWriter
from gateway.wiring import SNAPSHOT_FILE, Gateway

SCENARIO = "profile-"
"""Followed by the number of connections."""
ONE_VERSION = "gateway, one version"
MODEL = "mlp"
POINTS = (
    Point("receive", FastProtocol, "data_received"),
    Point("decode", FastDecoder, "decode"),
    Point("route", DataPlane, "admit"),
    Point("batch", Scheduler, "_give_turns"),
    Point("numbers", Template, "read_all"),
    Point("learn", batcher, "_run"),
    Point("learn", DynamicBatcher, "_learn"),
    Point("wrapper", OnnxSession, "run"),
    Point("run", InferenceSession, "run"),
    Point("answer", SharedBatcher, "_finish"),
    Point("ids", DataPlane, "_sign"),
    Point("texts", slot, "row_bodies"),
    Point("timing", Timing, "tell"),
    Point("send", FastProtocol, "send_ok"),
    Point("report", DataPlane, "_report"),
)
PARTS = {
    "receive": "receive, recognise the head",
    "decode": "decode",
    "route": "route and queue",
    "batch": "give turns, form the batch",
    "numbers": "read its numbers",
    "run": "ONNX Runtime's run",
    "wrapper": "its Python wrapper",
    "learn": "learn what it cost",
    "ids": "sign the ids",
    "texts": "write the rows as JSON",
    "timing": "say where its time went",
    "answer": "answer the callers",
    "send": "send",
    "report": "metrics, statistics, request log",
    REST: "event loop and rest",
}
"""In the order of a request's way, each with its name in a table."""
TURNS = {1: 400, 64: 40}
"""Requests of each connection in one measurement, by connections."""
WARM_UP = 0.25
"""Of the turns: caches are filled, and what was wrapped or unwrapped is specialised by the interpreter again."""
ANSWER_SECONDS = 30.0
NOWHERE = "redis://127.0.0.1:1"


class Wire(asyncio.Transport):
    """Takes answers and counts them, for all connections of a load."""

    answered = 0
    last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """An answer, which comes in one piece."""
        self.answered += 1
        self.last = bytes(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """An address."""
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default


class Load:
    """Connections of one server that send their requests at once and wait for all answers, again and again."""

    def __init__(self, listener: Listener, connections: int, body: bytes) -> None:
        self.connections = connections
        self._wire = Wire()
        path = f"/v2/models/{MODEL}/infer"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        config, state = listener.config, listener.server_state
        state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        protocol: Any = config.http_protocol_class
        self._protocols = [protocol(config=config, server_state=state, app_state={}) for _ in range(connections)]
        for one in self._protocols:
            one.connection_made(self._wire)

    async def turns(self, count: int) -> None:
        """`count` requests of each connection. Raises `RuntimeError` if the last answer is not a prediction."""
        wire, request = self._wire, self._request
        async with asyncio.timeout(ANSWER_SECONDS):
            for _ in range(count):
                due = wire.answered + self.connections
                for protocol in self._protocols:
                    protocol.data_received(request)
                while wire.answered < due:  # noqa: ASYNC110 -- an event costs more, and a server has none either
                    await asyncio.sleep(0)
                # A batch is recorded in the turn after its answers.
                await asyncio.sleep(0)
        if not wire.last.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"expected a prediction, got: {wire.last.decode()}")

    async def cpu(self, turns: int) -> dict[str, float]:
        """CPU time of a request, in µs, as it is without timing."""
        await self.turns(max(1, int(WARM_UP * turns)))
        before = time.process_time()
        await self.turns(turns)
        return {"cpu_us": (time.process_time() - before) / (turns * self.connections) * 1e6}

    async def parts(self, turns: int, cost: TimerCost) -> dict[str, float]:
        """The same of each part. Raises `LookupError` if the gateway no longer has a part, or no longer goes there."""
        stopwatch = Stopwatch()
        with timing(stopwatch, POINTS):
            await self.turns(max(1, int(WARM_UP * turns)))
            stopwatch.restart()
            await self.turns(turns)
            spent = stopwatch.spent(cost)
        if unseen := [point for point in POINTS if point.part not in spent]:
            names = ", ".join(f"{point.owner.__name__}.{point.name}" for point in unseen)
            raise LookupError(f"no request came to {names}: bench/profile.py has to follow the gateway")
        requests = turns * self.connections
        return _per_request(spent, requests) | {"rows_per_run": requests / stopwatch.calls("run")}


async def profile(
    models: Path, body: bytes, rounds: int, turns: dict[int, int], record: Callable[[Measurement], None]
) -> None:
    """Profile with the two versions of `mlp` in `models`; `turns` says how long, by connections.

    Raises `LookupError` if the parts are no longer those of the gateway.
    """
    first, _ = ROUTE["variants"]
    async with AsyncExitStack() as stack:
        stack.enter_context(_as_served())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-")))
        stack.enter_context(replaced(LogWriter, "append_predictions", _take))
        unbound = stack.enter_context(socket())
        both = await stack.enter_async_context(_gateway(models, folder / "both", ROUTE["variants"]))
        alone = await stack.enter_async_context(_gateway(models, folder / "one", [first | {"weight": 100}]))
        session = OnnxSession(models / MODEL / "1" / "model.onnx", "cpu")
        servers = {
            "gateway": Listener(both.public_app(), unbound, 1.0, both.fast_protocol()),
            ONE_VERSION: Listener(alone.public_app(), unbound, 1.0, alone.fast_protocol()),
            "prototype": Listener(unused, unbound, 1.0, _prototype(models / MODEL / "1" / "model.onnx")),
        }
        loads = {(name, count): Load(server, count, body) for name, server in servers.items() for count in turns}
        for number in range(1, rounds + 1):
            cost = timer_cost()
            for (name, count), load in loads.items():
                values = await load.cpu(turns[count])
                if name != "prototype":
                    values |= await load.parts(turns[count], cost)
                record(Measurement(f"{SCENARIO}{count}", name, number, values))
            for count, length in turns.items():
                values = _hot(session, count, length, cost) | {"timer_us": sum(cost) * 1e6}
                record(Measurement(f"{SCENARIO}{count}", IN_PROCESS, number, values))


def _hot(session: OnnxSession, rows: int, turns: int, cost: TimerCost) -> dict[str, float]:
    """The run alone, over and over, so that caches hold its weights and code and nothing else."""
    inputs = {spec.name: model.rows(MODEL, rows) for spec in session.signature.inputs}
    stopwatch = Stopwatch()
    with timing(stopwatch, (point for point in POINTS if point.part in {"run", "wrapper"})):
        for _ in range(max(1, int(WARM_UP * turns))):
            session.run(inputs)
        stopwatch.restart()
        for _ in range(turns):
            session.run(inputs)
        spent = stopwatch.spent(cost)
    del spent[REST]
    return _per_request(spent, turns * rows)


def _per_request(spent: dict[str, float], requests: int) -> dict[str, float]:
    return {f"{part}_us": seconds / requests * 1e6 for part, seconds in spent.items()}


@asynccontextmanager
async def _gateway(models: Path, data: Path, variants: list[dict[str, Any]]) -> AsyncIterator[Gateway]:
    """A gateway with everything on; the store that it is given is not there, and is not asked."""
    with ThreadPoolExecutor(1) as executor:
        store = connect(NOWHERE)
        gateway = Gateway(_settings(data, variants), store, bytes(32), "cpu", executor)
        gateway.loader.load_all([one for one in scan(models) if one.key.name == MODEL], gateway.registry)
        gateway.routes.begin()
        log = asyncio.create_task(gateway.log.run())
        try:
            yield gateway
        finally:
            log.cancel()
            await gateway.registry.close()
            await store.aclose()


def _settings(data: Path, variants: list[dict[str, Any]]) -> Settings:
    """With the route in the file of the last good ones."""
    data.mkdir()
    route = {"name": MODEL, "revision": 1, "variants": variants}
    (data / SNAPSHOT_FILE).write_bytes(orjson.dumps({MODEL: route}))
    # Not from the environment: settings of the shell's own gateway must not leak into this one.
    return Settings.model_construct(data_dir=data, threads=1, sample_rate=0.01)


async def _take(_writer: LogWriter, entries: list[object]) -> list[str]:
    return ["written"] * len(entries)


def _prototype(file: Path) -> type[PrototypeProtocol]:
    class Prototype(PrototypeProtocol):
        batcher = Batcher(str(file), threads=1)

    return Prototype


@contextmanager
def _as_served() -> Iterator[None]:
    """What `gateway serve` sets for the whole process."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    random.seed(model.SEED)
    try:
        with np.errstate(over="ignore"):
            yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
