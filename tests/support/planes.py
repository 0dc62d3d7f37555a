"""A data plane over real models in this process, with or without a real store behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import GatewayError
from gateway.prediction_id import IdSigner
from gateway.runtime.memory import ModelMemory
from gateway.runtime.registry import Loader, Registry
from gateway.runtime.repository import scan, selected
from gateway.runtime.scheduler import Scheduler
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.serving.model_control import ModelControl
from gateway.serving.request_log import RequestLog
from gateway.serving.request_traces import RequestTraces
from gateway.serving.route_table import RouteTable
from gateway.state.client import Store, connect
from gateway.state.log_writer import LogWriter, Outcome
from gateway.state.route_store import RouteStore
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import Array, InferenceRequest, InferenceResponse

NOWHERE = "redis://127.0.0.1:1"
NOW = 1_700_000_000.0


class FakeWriter(LogWriter):
    """Takes entries without a store, as fast or as slowly as the test says."""

    def __init__(self) -> None:
        super().__init__(connect(NOWHERE), prediction_bytes=10**9, feedback_entries=1)
        self.entries: list[tuple[str, dict[bytes, bytes]]] = []

    async def append_predictions(self, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[Outcome]:
        """Remember them."""
        self.entries += entries
        return ["written"] * len(entries)


@dataclass
class Plane:
    """The parts that a test asks questions of."""

    plane: DataPlane
    registry: Registry
    routes: RouteTable
    signer: IdSigner
    metrics: GatewayMetrics
    log: RequestLog
    loader: Loader
    control: ModelControl

    def submit(
        self, model: str, inputs: dict[str, Array], version: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Call, list[InferenceResponse | GatewayError]]:
        """Submit; the list gets the reply."""
        replies: list[InferenceResponse | GatewayError] = []
        request = InferenceRequest(model, version, inputs, headers=headers or {})
        return self.plane.submit(request, replies.append), replies

    async def predict(
        self, model: str, inputs: dict[str, Array], version: str | None = None, headers: Mapping[str, str] | None = None
    ) -> InferenceResponse:
        """Submit and wait for the one answer."""
        replied: asyncio.Future[InferenceResponse | GatewayError] = asyncio.get_running_loop().create_future()
        request = InferenceRequest(model, version, inputs, headers=headers or {})
        # A second reply would raise.
        self.plane.submit(request, replied.set_result)
        reply = await replied
        assert isinstance(reply, InferenceResponse), reply
        return reply

    def counted(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name and these labels."""
        samples = [sample for family in self.metrics.collect() for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def plane_over(
    models: Path,
    folder: Path,
    *,
    store: Store | None = None,
    writer: LogWriter | None = None,
    rate: float = 1.0,
    buffer_bytes: int = 2**24,
    traces: RequestTraces | None = None,
    model_keys: Path | None = None,
    memory_bytes: int = 0,
) -> Iterator[Plane]:
    """Everything that `wiring.py` connects, without ports. Without a store, routes are the default ones."""
    metrics = GatewayMetrics()
    registry = Registry()
    routes = RouteTable(registry, RouteStore(store or connect(NOWHERE)), folder / "routes.json")
    log = RequestLog(writer or FakeWriter(), metrics, rate=rate, buffer_bytes=buffer_bytes, clock=lambda: NOW)
    signer = IdSigner(b"a key for this test alone", b"abc")
    plane = DataPlane(registry, routes, signer, metrics, log, random=lambda: 0.5, clock=lambda: NOW, traces=traces)
    with ThreadPoolExecutor(2) as executor:
        loader = Loader(
            *("cpu", 1, executor, Scheduler(2), 30.0, plane.finish),
            model_keys=model_keys,
            memory=ModelMemory(memory_bytes),
        )
        loader.load_all(selected(scan(models), {}), registry)
        routes.begin()
        control = ModelControl(models, loader, plane, routes, metrics)
        yield Plane(plane, registry, routes, signer, metrics, log, loader, control)


@contextmanager
def plane_of(models: Path, store: Store | None = None, **options: Any) -> Iterator[Plane]:
    """A plane whose last good routes lie beside its models."""
    with plane_over(models, models.parent, store=store, **options) as plane:
        yield plane
