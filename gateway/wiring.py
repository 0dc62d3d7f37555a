"""The object graph of one gateway. Building it does no I/O; `server.py` brings it to life."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from gateway.api.admin import AdminApi
from gateway.api.app import ops_app, public_app, worker_app
from gateway.api.control import ControlApi
from gateway.api.documentation import DocumentationApi
from gateway.api.extensions import ExtensionsApi
from gateway.api.fastpath import FastProtocol
from gateway.api.inference import InferenceApi
from gateway.api.recognition import ServerShare
from gateway.api.v1 import V1Api
from gateway.api.workers import Opening, UpwardApi, WorkerApi
from gateway.prediction_id import IdSigner
from gateway.runtime.cores import usable_cores
from gateway.runtime.cuda import cuda_options
from gateway.runtime.engine.client import EngineClient
from gateway.runtime.engine.remote import EngineLoader
from gateway.runtime.memory import ModelMemory
from gateway.runtime.registry import Loader, ModelVersion, Registry
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.session import Device
from gateway.runtime.warming import LEARNED_FOLDER
from gateway.runtime.work import Batch
from gateway.serving.core_contest import CoreContests
from gateway.serving.dataplane import DataPlane
from gateway.serving.feedback import Feedback
from gateway.serving.gauges import serving_gauges
from gateway.serving.inventory import Inventory
from gateway.serving.learning import Learning
from gateway.serving.model_control import ModelControl
from gateway.serving.model_poll import ModelPoll
from gateway.serving.request_log import RequestLog
from gateway.serving.request_traces import RequestTraces
from gateway.serving.route_editor import RouteEditor
from gateway.serving.route_simulator import RouteSimulator
from gateway.serving.route_table import RouteTable
from gateway.serving.trace_settings import TraceSettings
from gateway.serving.upward import Upward
from gateway.serving.watching import Watching
from gateway.serving.worker_state import WorkerState
from gateway.settings import Settings
from gateway.state.client import Store
from gateway.state.log_reader import LogReader
from gateway.state.log_writer import LogWriter
from gateway.state.route_store import RouteStore
from gateway.state.stats_store import StatsStore
from gateway.telemetry.log_settings import LogSettings
from gateway.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from gateway.api.grpc.listener import GrpcListener
    from gateway.telemetry.tracing import Tracing

SNAPSHOT_FILE = "routes.json"
ENGINE_FOLDER = "tensorrt"
NONCE_BYTES = 3


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's among the workers of a gateway."""

    socket: Path
    """Where the supervisor talks to it."""
    supervisor: Path
    """Where it talks to the supervisor."""
    versions: frozenset[str] | None
    """`model/version` of what it takes up; None for all that the repository holds."""


class Gateway:
    """Everything between the two ports and the store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        id_key: bytes,
        device: Device,
        executor: Executor,
        place: Place | None = None,
        engine: EngineClient | None = None,
    ) -> None:
        """Models are to run on `device`, in threads of `executor` unless they are fast, or all in the `engine`.

        `place` is a worker's.

        Raises `StartupError` if a setting has no effect there.
        """
        self.metrics = GatewayMetrics()
        self.registry = Registry()
        route_store = RouteStore(store)
        self.routes = RouteTable(self.registry, route_store, settings.data_dir / SNAPSHOT_FILE)
        writer = LogWriter(
            store,
            prediction_bytes=settings.log_stream_bytes,
            feedback_entries=settings.feedback_stream_entries,
        )
        self.log = RequestLog(writer, self.metrics, rate=settings.sample_rate, buffer_bytes=settings.log_buffer_bytes)
        signer = IdSigner(id_key, secrets.token_bytes(NONCE_BYTES))
        self.tracing = start_tracing(settings, self.metrics)
        traces = None
        if self.tracing is not None:
            scheme = "http" if settings.tls_cert is None else "https"
            traces = RequestTraces(self.tracing, rate=settings.trace_rate, scheme=scheme, random=random.random)
        self.plane = DataPlane(
            *(self.registry, self.routes, signer, self.metrics, self.log),
            random=random.random,
            traces=traces,
            tells_timing=settings.server_timing,
        )
        self.scheduler = Scheduler(thread_budget(settings))
        self.loader = make_loader(settings, device, executor, self.scheduler, self.plane.finish)
        self.engine = engine
        if engine is not None:
            self.loader = EngineLoader(
                *(device, settings.threads, executor, self.scheduler, settings.request_timeout, self.plane.finish),
                cuda=self.loader.cuda,
                client=engine,
                metrics=self.metrics,
            )
        self.learning = Learning(self.registry, settings.data_dir / LEARNED_FOLDER)
        self.core_contests = CoreContests(self.registry)
        self.control = ModelControl(settings.models, self.loader, self.plane, self.routes, self.metrics)
        self.poll = ModelPoll(settings.models, self.registry, self.control)
        feedback = Feedback(self.registry, self.routes, signer, writer, self.metrics)
        editor = RouteEditor(self.registry, self.routes, route_store)
        watching = Watching(self.registry, StatsStore(store), self.metrics)
        self.metrics.add_gauges(serving_gauges(self.registry, self.routes, self.scheduler, runs_models=engine is None))
        self._inventory = Inventory(self.plane, self.routes, self.loader)
        self._inference = InferenceApi(
            self.plane,
            self._inventory,
            feedback,
            self.metrics,
            settings.max_body_bytes,
            control_public=settings.control_public,
        )
        self._extensions = ExtensionsApi(self._inventory)
        log_settings, trace_settings = LogSettings(settings.log_format), TraceSettings(traces, self.registry)
        control_api = partial(ControlApi, self.control, log_settings, trace_settings, settings.max_body_bytes)
        self._state = WorkerState(self.registry, self.control, log_settings, trace_settings)
        self._public_control = control_api(is_open=settings.control_public)
        self._ops_control = control_api(is_open=True)
        self._v1 = V1Api(self.plane, self._inventory, self._inference.door, settings.max_body_bytes)
        self._documentation = DocumentationApi(self.registry, self.routes)
        simulator = RouteSimulator(editor, self.routes, LogReader(store))
        self._admin = AdminApi(self.routes, route_store, editor, simulator, watching, self.metrics)
        self._token = settings.ops_token.get_secret_value() if settings.ops_token else None
        self._metrics_public = settings.metrics_public
        self._max_body_bytes = settings.max_body_bytes
        self._control_public = settings.control_public
        self.upward = None if place is None else Upward(place.supervisor)

    def fast_protocol(self) -> Callable[..., asyncio.Protocol]:
        """The public port's HTTP protocol, for uvicorn."""
        limit = self._max_body_bytes
        return partial(FastProtocol, door=self._inference.door, share=ServerShare(), max_body_bytes=limit)

    def public_app(self) -> ASGIApp:
        """For the public port."""
        upward = None
        if self.upward is not None:
            upward = UpwardApi(self.upward, self._max_body_bytes, control_public=self._control_public)
        return public_app(
            self._inference, self._extensions, self._public_control, self._v1, self._documentation, upward
        )

    def grpc_listener(
        self, address: str, shutdown_timeout: float, tls: tuple[Path, Path] | None = None
    ) -> GrpcListener:
        """The gRPC server; its libraries must be there. Raises `StartupError` if the address cannot be had."""
        # An extra, so imported by those alone who ask for the port.
        from gateway.api.grpc.listener import GrpcListener  # noqa: PLC0415
        from gateway.api.grpc.service import InferenceService  # noqa: PLC0415

        service = InferenceService(
            self.plane,
            self._inventory,
            self.control,
            self.metrics,
            control_public=self._control_public,
            upward=self.upward,
        )
        return GrpcListener(
            service,
            address,
            max_message_bytes=self._max_body_bytes,
            shutdown_timeout=shutdown_timeout,
            tls=tls,
            is_shared=self.upward is not None,
        )

    def ops_app(self) -> ASGIApp:
        """For the ops port."""
        return ops_app(self._admin, self._ops_control, self._token, metrics_public=self._metrics_public)

    def worker_app(self, opening: Opening) -> ASGIApp:
        """For a worker's supervisor, in place of the ops port."""
        worker = WorkerApi(self._state, opening, self.registry, self.loader.device)
        return worker_app(self._admin, self._ops_control, self._extensions, worker)


def thread_budget(settings: Settings) -> int:
    """Threads that all runs off the event loop may use together."""
    return settings.thread_budget or usable_cores()


def make_loader(
    settings: Settings,
    device: Device,
    executor: Executor,
    scheduler: Scheduler,
    on_batch: Callable[[ModelVersion, Batch], None],
) -> Loader:
    """What loads models into this process. Raises `StartupError` if a setting has no effect on the device."""
    return Loader(
        *(device, settings.threads, executor, scheduler, settings.request_timeout, on_batch),
        cuda=cuda_options(device, settings.device_id, settings.device_memory_bytes, settings.data_dir / ENGINE_FOLDER),
        learned=settings.data_dir / LEARNED_FOLDER,
        model_keys=settings.model_keys,
        memory=ModelMemory(settings.model_memory_bytes),
    )


def start_tracing(settings: Settings, metrics: GatewayMetrics) -> Tracing | None:
    """The way to the collector, if there is one. Raises `StartupError` if the environment contradicts the settings."""
    if settings.otlp_endpoint is None:
        return None
    # The OpenTelemetry SDK takes a quarter of a second to import, and only those who trace need it.
    from gateway.telemetry.tracing import Tracing  # noqa: PLC0415

    return Tracing(settings.otlp_endpoint, metrics)
