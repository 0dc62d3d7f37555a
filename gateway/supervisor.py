"""`gateway serve --workers N`: what there is once for all workers, and the workers themselves.

The supervisor holds the data directory, the store, the collector and the ops port. Each worker is a gateway of its own
on the same public port. If the supervisor ends, however that is, they stop in order.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from typing import TypeVar

from gateway.api.app import supervisor_app, supervisor_ops_app
from gateway.api.workers import SupervisorApi
from gateway.children import child_environment, running_children
from gateway.lifecycle import Started, background, exclusive, stop_signals
from gateway.listener import Listener, address, bind, bind_private, reserve
from gateway.runtime.cores import usable_cores
from gateway.runtime.repository import scan
from gateway.runtime.trust import read_keys
from gateway.server import LAST_FLUSH_SECONDS, id_key
from gateway.serving.fleet import Fleet, StartRefused
from gateway.settings import Settings
from gateway.state.client import connect, redact
from gateway.state.sockets import make_private, socket_path
from gateway.state.worker import Worker
from gateway.telemetry.log_settings import LogSettings

logger = logging.getLogger(__name__)

SOCKETS_FOLDER = "workers"
SUPERVISOR_SOCKET = "supervisor.sock"
GRACE_SECONDS = 15.0
"""More than the limits of its parts that a worker may take to end."""

T = TypeVar("T")


async def supervise(settings: Settings, announce: Callable[[Started], None]) -> int:
    """Serve until SIGINT or SIGTERM and stop everything; the exit code: a worker's that could not start, else 0.

    Raises `StartupError` if something that the settings ask for cannot be had.
    """
    stop = stop_signals()
    async with AsyncExitStack() as stack:
        # 1. What can fail without side effects: the folder, the ports, the models on disk.
        stack.enter_context(exclusive(settings.data_dir))
        public = stack.enter_context(reserve("port", settings.host, settings.port))
        ops = stack.enter_context(bind("ops_port", settings.ops_host, settings.ops_port))
        grpc = None
        if settings.grpc_port is not None:
            grpc = stack.enter_context(reserve("grpc_port", settings.host, settings.grpc_port))
        folder = _sockets_folder(settings)
        private = stack.enter_context(bind_private(folder / SUPERVISOR_SOCKET))
        scan(settings.models)
        if settings.model_keys is not None:
            read_keys(settings.model_keys)
        # 2. Store, collector and engine, and the key, which the first of several would otherwise make for itself.
        redis_url, children = stack.enter_context(running_children(settings))
        await stack.enter_async_context(background(*(child.keep_running() for child in children)))
        store = connect(redis_url)
        stack.push_async_callback(store.aclose)
        await id_key(settings, store)
        # 3. The ops port, which tells how far the workers are and is there until they have ended.
        shared = {"port": _port(public), **({"grpc_port": _port(grpc)} if grpc else {}), "redis_url": redis_url}
        fleet = Fleet(_workers(settings, folder, shared))
        api = SupervisorApi(fleet, LogSettings(settings.log_format), settings.max_body_bytes)
        token = settings.ops_token.get_secret_value() if settings.ops_token else None
        ops_app = supervisor_ops_app(api, token, metrics_public=settings.metrics_public)
        for app, sock in ((ops_app, ops), (supervisor_app(api), private)):
            await stack.enter_async_context(Listener(app, sock, settings.shutdown_timeout).running())
        # 4. The workers, then whatever starts them again.
        stack.push_async_callback(fleet.stop, _longest_end(settings))
        try:
            summary = await _unless(stop, fleet.start())
        except StartRefused as refused:
            return refused.code
        if summary is None:
            return 0
        await stack.enter_async_context(background(*fleet.keeping()))
        announce(
            Started(
                summary=summary,
                public_url=f"http{'s' if settings.tls else ''}://{address(public)}",
                ops_url=f"http://{address(ops)}",
                grpc_address=address(grpc) if grpc else None,
                store=redact(redis_url),
                settings=settings,
            )
        )
        await stop.wait()
        # 5. The workers tell the load balancers, and answer what is in flight, before anything else stops.
        logger.info("stopping")
    logger.info("stopped")
    return 0


def _workers(settings: Settings, folder: Path, shared: dict[str, str]) -> list[Worker]:
    count, cores = settings.workers, settings.thread_budget or usable_cores()
    if count > cores:
        logger.warning(
            "%d workers on %d cores: more workers than cores serve less, unless they wait for a GPU", count, cores
        )
    # What is of the whole gateway is divided; what is of a model or a request is each worker's.
    divided = {"log_buffer_bytes": str(settings.log_buffer_bytes // count)}
    if settings.engine == "inline":
        divided["model_memory_bytes"] = str(settings.model_memory_bytes // count)
        divided["thread_budget"] = str(max(1, cores // count))
    options = {**settings.as_options(), **shared, **divided, "ops_port": "0", "workers": "1", "collector": "false"}
    return [
        Worker(index, folder / f"{index}.sock", _command(folder, index), child_environment(options))
        for index in range(count)
    ]


def _command(folder: Path, index: int) -> list[str]:
    places = ["--socket", str(folder / f"{index}.sock"), "--supervisor", str(folder / SUPERVISOR_SOCKET)]
    return [sys.executable, "-m", "gateway", "worker", str(index), *places]


def _sockets_folder(settings: Settings) -> Path:
    folder = socket_path(settings.data_dir.resolve() / SOCKETS_FOLDER / SUPERVISOR_SOCKET).parent
    make_private(folder)
    return folder


def _port(sock: socket) -> str:
    return str(sock.getsockname()[1])


def _longest_end(settings: Settings) -> float:
    """Seconds that a worker may take to end: while it drains, for each of its ports, and to write its log."""
    return settings.drain_seconds + 3 * settings.shutdown_timeout + LAST_FLUSH_SECONDS + GRACE_SECONDS


async def _unless(stop: asyncio.Event, starting: Coroutine[None, None, T]) -> T | None:
    """What comes of it; None if the stop comes first."""
    stopping, started = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(starting)
    try:
        await asyncio.wait((stopping, started), return_when=asyncio.FIRST_COMPLETED)
        return None if stop.is_set() else await started
    finally:
        stopping.cancel()
        started.cancel()
