"""`gateway serve`: start everything in order, serve, stop everything in the opposite order."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import importlib.util
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.engine_process import EngineProcess
from gateway.errors import StartupError, StoreUnavailable
from gateway.lifecycle import prepare_to_serve, stop_signals
from gateway.runtime.engine.client import EngineClient
from gateway.runtime.repository import scan
from gateway.runtime.session import Device, choose_device
from gateway.settings import ENGINE_OPTIONS, ENV_PREFIX, Settings
from gateway.state.client import Store, connect, redact
from gateway.state.embedded import EmbeddedStore
from gateway.state.id_key import shared_id_key
from gateway.state.process import ChildProcess
from gateway.wiring import Gateway

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time-outs of common load balancers (60 s), so that they close first and lose no request."""
LAST_FLUSH_SECONDS = 5.0
"""At shutdown, how long the request log may take to write what it holds."""
CANCEL_AGAIN_SECONDS = 0.2
MAX_CONSUMER_NAME = 128
ID_KEY_FILE = "id.key"
LOCK_FILE = "lock"


class Listener(uvicorn.Server):
    """Uvicorn on a bound socket, without its signal handlers: two run in one process and stop in order."""

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        shutdown_timeout: float,
        protocol: Callable[..., asyncio.Protocol] = HttpToolsProtocol,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """`tls` is the certificate chain and its key. Raises `StartupError` if they cannot be used."""
        certificate, key = tls or (None, None)
        config = uvicorn.Config(
            app,
            loop="none",
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise StartupError(f"tls_cert {certificate} and tls_key {key}: {error}") from error
        super().__init__(config)
        self._socket = sock
        self._startup_is_over = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to `serve`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell `running`."""
        try:
            await super().startup(sockets)
        finally:
            self._startup_is_over.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Accept connections; at the end refuse new ones and answer what is in flight.

        Raises `StartupError` if somebody else began to listen on the port since it was bound.
        """
        host, port = self._socket.getsockname()[:2]
        task = asyncio.create_task(self.serve(sockets=[self._socket]))
        await self._startup_is_over.wait()
        if not self.started:
            try:
                await task
            except OSError as error:
                raise StartupError(f"{host}:{port}: {os.strerror(error.errno or 0)}; choose another port") from error
        try:
            yield
        finally:
            self.should_exit = True
            await task
            # A client that does not read its answers has had its time.
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            # What was aborted is told so at the next turn of the loop, while the loop still turns.
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Started:
    """What the terminal is told once both ports answer."""

    gateway: Gateway
    public_url: str
    ops_url: str
    grpc_address: str | None
    store: str
    device: Device
    settings: Settings


async def serve(settings: Settings, announce: Callable[[Started], None]) -> None:
    """Serve until SIGINT or SIGTERM; return when everything is stopped.

    Raises `StartupError` if something that the settings ask for cannot be had.
    """
    prepare_to_serve()
    stop = stop_signals()
    async with AsyncExitStack() as stack:
        # 1. What can fail without side effects: the folder, the ports, the device, the models on disk.
        stack.enter_context(_exclusive(settings.data_dir))
        public_socket = stack.enter_context(_bind("port", settings.host, settings.port))
        ops_socket = stack.enter_context(_bind("ops_port", settings.ops_host, settings.ops_port))
        grpc_socket = stack.enter_context(_bind_grpc(settings))
        device = choose_device(settings.device) if settings.engine == "inline" else None
        folders = scan(settings.models)
        # 2. The store and the collector, each a child if it is ours.
        redis_url, children = _children(settings)
        for child in children:
            stack.callback(child.stop)
            child.start()
        store = connect(redis_url)
        stack.push_async_callback(store.aclose)
        # 3. The models, then the rules about them.
        executor = stack.enter_context(ThreadPoolExecutor(max(2, os.cpu_count() or 1), "onnx"))
        engine = None
        if device is None:
            engine = await stack.enter_async_context(_engine(settings))
            device = engine.device
        gateway = Gateway(settings, store, await _id_key(settings, store), device, executor, engine)
        await asyncio.to_thread(gateway.loader.load_all, folders, gateway.registry)
        gateway.routes.begin()
        await _first_rules(gateway)
        # 4. What runs beside the requests.
        await stack.enter_async_context(
            _background(
                gateway.routes.watch(settings.route_poll_seconds),
                gateway.log.run(),
                *(child.keep_running() for child in children),
            )
        )
        # 5. The doors; they close first. Whoever is inside is answered before anything else stops.
        ops = Listener(gateway.ops_app(), ops_socket, settings.shutdown_timeout)
        tls = (settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
        public = Listener(gateway.public_app(), public_socket, settings.shutdown_timeout, gateway.fast_protocol(), tls)
        stack.push_async_callback(_flush, gateway)
        if gateway.tracing is not None:
            stack.push_async_callback(gateway.tracing.close)
        await stack.enter_async_context(ops.running())
        stack.push_async_callback(gateway.registry.close)
        await stack.enter_async_context(public.running())
        if grpc_socket is not None:
            rpc = gateway.grpc_listener(_address(grpc_socket), settings.shutdown_timeout, tls)
            await stack.enter_async_context(rpc.running())
        # What is here now stays until the end: leave it out of every later look.
        gc.collect()
        gc.freeze()
        public_url, ops_url = f"http{'s' if tls else ''}://{_address(public_socket)}", f"http://{_address(ops_socket)}"
        grpc_address = _address(grpc_socket) if grpc_socket is not None else None
        announce(Started(gateway, public_url, ops_url, grpc_address, redact(redis_url), device, settings))
        await stop.wait()
        # 6. Tell the load balancers, and give them time to look.
        logger.info("stopping")
        gateway.plane.is_draining = True
        await asyncio.sleep(settings.drain_seconds)
    logger.info("stopped")


def _children(settings: Settings) -> tuple[str, list[ChildProcess]]:
    children: list[ChildProcess] = []
    redis_url = settings.redis_url
    if redis_url is None:
        embedded = EmbeddedStore(settings.data_dir)
        redis_url = embedded.url
        children.append(embedded)
    if settings.collector:
        children.append(_collector(settings, redis_url))
    return redis_url, children


def _collector(settings: Settings, redis_url: str) -> ChildProcess:
    """`gateway collect` as a child, so that its work never delays a prediction."""
    if importlib.util.find_spec("datasketches") is None:
        raise StartupError(
            "the collector's libraries are missing: `pip install 'model-gateway[collector]'`, or start with "
            "--no-collector and run `gateway collect` elsewhere"
        )
    # The data directory is ours alone, so a child that is started again after a crash can go by the same name.
    name = settings.consumer_name or f"{socket.gethostname()}:{settings.data_dir.resolve()}"[-MAX_CONSUMER_NAME:]
    options = {
        "models": str(settings.models),
        "redis_url": redis_url,
        "consumer_name": name,
        "log_level": settings.log_level,
        "log_format": settings.log_format,
    }
    return ChildProcess("collector", [sys.executable, "-m", "gateway", "collect"], _environment(options))


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[EngineClient]:
    """The engine process and the connection to it, both kept up to the end.

    Raises `StartupError` if it does not start.
    """
    options = {name: str(getattr(settings, name)) for name in ENGINE_OPTIONS}
    child = EngineProcess(settings.data_dir, _environment(options))
    child.start()
    try:
        client = EngineClient(child.socket, settings.engine_arena_bytes)
        await client.connect()
        with closing(client):
            async with _background(child.keep_running(), client.keep_connected()):
                yield client
    finally:
        child.stop()


def _environment(options: Mapping[str, str]) -> dict[str, str]:
    """Ours, with `options` as the only settings.

    A command line, where everybody can read it, is no place for the store's password.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    return environment | {ENV_PREFIX + name.upper(): value for name, value in options.items()}


async def _id_key(settings: Settings, store: Store) -> bytes:
    if settings.id_key is not None:
        return settings.id_key.get_secret_value().encode()
    return await shared_id_key(store, settings.data_dir / ID_KEY_FILE)


async def _first_rules(gateway: Gateway) -> None:
    try:
        await gateway.routes.refresh()
    except StoreUnavailable as error:
        rules = "the last good routes are in force" if gateway.routes.is_known else "not ready until it does"
        logger.warning("%s; %s", error, rules)


async def _flush(gateway: Gateway) -> None:
    try:
        async with asyncio.timeout(LAST_FLUSH_SECONDS):
            await gateway.log.flush()
    except (StoreUnavailable, TimeoutError):
        logger.warning("%d request log entries were lost: the store does not answer", gateway.log.abandon())


@asynccontextmanager
async def _background(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run them until the end. One that fails is a bug: it is logged, and the process stops rather than limps on."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task.add_done_callback(_stop_on_failure)
    try:
        yield
    finally:
        pending = set(tasks)
        while pending:
            # More than once: on Python 3.11 `asyncio.wait_for`, which redis-py waits with, loses a cancellation that
            # comes together with the result (CPython issue 86296).
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)


def _stop_on_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("a background task failed; stopping", exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _exclusive(data_dir: Path) -> Iterator[None]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / LOCK_FILE).open("w")
    except OSError as error:
        raise StartupError(f"data_dir {data_dir}: {error.strerror}; name a writable folder with --data-dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartupError(
                f"data_dir {data_dir} is in use by another gateway; stop it, or name another with --data-dir"
            ) from error
        yield


@contextmanager
def _bind(name: str, host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"{name} {host}:{port}: {error.strerror}") from error
    with sock:
        option = name.replace("_", "-")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise StartupError(f"{name} {host}:{port}: {error.strerror}; choose another with --{option}") from error
        yield sock


@contextmanager
def _bind_grpc(settings: Settings) -> Iterator[socket.socket | None]:
    """The gRPC port, reserved for its server, which binds it once more by itself; None if it is off."""
    if settings.grpc_port is None:
        yield None
        return
    if importlib.util.find_spec("grpc") is None or importlib.util.find_spec("tritonclient") is None:
        raise StartupError(
            "grpc_port is set and gRPC's libraries are missing: `pip install 'model-gateway[grpc]'`, or leave it unset"
        )
    with _bind("grpc_port", settings.host, settings.grpc_port) as sock:
        yield sock


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
