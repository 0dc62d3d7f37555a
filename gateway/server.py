"""`gateway serve`, also as one worker of several: start everything in order, serve, stop in the opposite order."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from socket import socket

from starlette.types import ASGIApp

from gateway.api.workers import Opening
from gateway.children import running_children
from gateway.engine_process import engine_socket
from gateway.errors import StartupError, StoreUnavailable
from gateway.lifecycle import Started, background, exclusive, prepare_to_serve, stop_signals
from gateway.listener import Listener, address, bind, bind_private
from gateway.runtime.engine.client import EngineClient
from gateway.runtime.repository import VersionFolder, scan, selected, survey, usable
from gateway.runtime.session import Device, choose_device
from gateway.runtime.trust import read_keys
from gateway.serving.summary import summary_of
from gateway.settings import Settings
from gateway.state.client import Store, connect, redact
from gateway.state.id_key import shared_id_key
from gateway.wiring import Gateway, Place, thread_budget

logger = logging.getLogger(__name__)

LAST_FLUSH_SECONDS = 5.0
"""At shutdown, how long the request log may take to write what it holds."""
ID_KEY_FILE = "id.key"


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound, not listening."""

    public: socket
    ops: socket
    """A worker's is a Unix socket."""
    grpc: socket | None


async def serve(settings: Settings, announce: Callable[[Started], None]) -> None:
    """Serve until SIGINT or SIGTERM; return when everything is stopped.

    Raises `StartupError` if something that the settings ask for cannot be had.
    """
    stop = stop_signals()
    async with AsyncExitStack() as stack:
        # 1. What can fail without side effects: the folder, the ports, the device, the models on disk.
        stack.enter_context(exclusive(settings.data_dir))
        sockets = Sockets(
            public=stack.enter_context(bind("port", settings.host, settings.port)),
            ops=stack.enter_context(bind("ops_port", settings.ops_host, settings.ops_port)),
            grpc=stack.enter_context(_bind_grpc(settings)),
        )
        device = choose_device(settings.device) if settings.engine == "inline" else None
        folders = scan(settings.models)
        if settings.model_keys is not None:
            read_keys(settings.model_keys)
        # 2. The store and the collector, each a child if it is ours.
        redis_url, children = stack.enter_context(running_children(settings))
        await stack.enter_async_context(background(*(child.keep_running() for child in children)))
        # 3. The models, then the rules about them.
        gateway = await _loaded(stack, settings, redis_url, device, folders)
        # 4. What runs beside the requests.
        await stack.enter_async_context(background(*_beside(gateway, settings)))
        # 5. The doors; they close first. Whoever is inside is answered before anything else stops.
        await _open_ops(stack, gateway, gateway.ops_app(), sockets, settings)
        await _open_public(stack, gateway, sockets, settings)
        announce(
            Started(
                summary=summary_of(gateway.registry, gateway.loader.device),
                public_url=f"http{'s' if settings.tls else ''}://{address(sockets.public)}",
                ops_url=f"http://{address(sockets.ops)}",
                grpc_address=address(sockets.grpc) if sockets.grpc is not None else None,
                store=redact(redis_url),
                settings=settings,
            )
        )
        await stop.wait()
        # 6. Tell the load balancers, and give them time to look.
        await _drain(gateway, settings)
    logger.info("stopped")


async def serve_as_worker(settings: Settings, place: Place) -> None:
    """As `serve`, beside other workers: on ports that they share, with the ops port on a Unix socket.

    Store and collector are the supervisor's. The ports open when it says so.
    """
    stop = stop_signals()
    async with AsyncExitStack() as stack:
        sockets = Sockets(
            public=stack.enter_context(bind("port", settings.host, settings.port, shared=True)),
            ops=stack.enter_context(bind_private(place.socket)),
            grpc=stack.enter_context(_bind_grpc(settings, shared=True)),
        )
        device = choose_device(settings.device) if settings.engine == "inline" else None
        assert settings.redis_url is not None  # noqa: S101 -- the supervisor says which it is
        gateway = await _loaded(stack, settings, settings.redis_url, device, _folders(settings, place), place)
        if gateway.upward is not None:
            stack.push_async_callback(gateway.upward.close)
        await stack.enter_async_context(background(*_beside(gateway, settings)))
        opening = Opening()
        await _open_ops(stack, gateway, gateway.worker_app(opening), sockets, settings)
        # Whoever asked is told when it is clear what came of it, whatever that is.
        stack.callback(opening.end, is_open=False)
        if await _comes_first(opening.is_wanted, stop):
            await _open_public(stack, gateway, sockets, settings)
            opening.end(is_open=True)
            await stop.wait()
            await _drain(gateway, settings)
    logger.info("stopped")


def _folders(settings: Settings, place: Place) -> list[VersionFolder]:
    """What lies in the repository; of that, for a worker that is started again, what the others have."""
    if place.versions is None:
        return scan(settings.models)
    # What came there since is not looked at, so it cannot keep the worker from starting either.
    return [usable(found) for key, found in survey(settings.models).items() if str(key) in place.versions]


async def _loaded(
    stack: AsyncExitStack,
    settings: Settings,
    redis_url: str,
    device: Device | None,
    folders: Sequence[VersionFolder],
    place: Place | None = None,
) -> Gateway:
    """A gateway with its models and the rules about them, not reachable yet. Without a device the engine runs them."""
    prepare_to_serve()
    store = connect(redis_url)
    stack.push_async_callback(store.aclose)
    executor = stack.enter_context(ThreadPoolExecutor(thread_budget(settings), "onnx"))
    engine = None
    if device is None:
        engine = await stack.enter_async_context(_connected(settings))
        device = engine.device
    gateway = Gateway(settings, store, await id_key(settings, store), device, executor, place, engine)
    if place is None or place.versions is None:
        named = await gateway.routes.named_versions({folder.key.name for folder in folders})
        folders = selected(list(folders), named)
    if folders and engine is None:
        gateway.loader.load_all(list(folders), gateway.registry)
    elif folders:
        # The connection to the engine is looked after meanwhile.
        await asyncio.to_thread(gateway.loader.load_all, list(folders), gateway.registry)
    gateway.routes.begin()
    await _first_rules(gateway)
    return gateway


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[EngineClient]:
    """The connection to the engine process, kept up to the end. Raises `StartupError` if there is no engine."""
    client = EngineClient(engine_socket(settings.data_dir), settings.engine_arena_bytes)
    await client.connect()
    with closing(client):
        async with background(client.keep_connected()):
            yield client


def _beside(gateway: Gateway, settings: Settings) -> Iterator[Coroutine[None, None, None]]:
    yield gateway.routes.watch(settings.route_poll_seconds)
    yield gateway.log.run()
    if gateway.engine is None:
        yield gateway.learning.run()
        yield gateway.core_contests.run()
    if settings.model_poll_seconds:
        yield gateway.poll.run(settings.model_poll_seconds)


async def _open_ops(
    stack: AsyncExitStack, gateway: Gateway, app: ASGIApp, sockets: Sockets, settings: Settings
) -> None:
    """Open the ops port, which closes after the others, and have what was served written out after that."""
    stack.push_async_callback(gateway.learning.write)
    stack.push_async_callback(_flush, gateway)
    if gateway.tracing is not None:
        stack.push_async_callback(gateway.tracing.close)
    await stack.enter_async_context(Listener(app, sockets.ops, settings.shutdown_timeout).running())
    stack.push_async_callback(gateway.registry.close)


async def _open_public(stack: AsyncExitStack, gateway: Gateway, sockets: Sockets, settings: Settings) -> None:
    tls, patience = settings.tls, settings.shutdown_timeout
    public = Listener(gateway.public_app(), sockets.public, patience, gateway.fast_protocol(), tls)
    await stack.enter_async_context(public.running())
    if sockets.grpc is not None:
        rpc = gateway.grpc_listener(address(sockets.grpc), patience, tls)
        await stack.enter_async_context(rpc.running())
    # What is here now stays until the end: leave it out of every later look.
    gc.collect()
    gc.freeze()


async def _comes_first(one: asyncio.Event, other: asyncio.Event) -> bool:
    """Whether `one` is set before `other` is."""
    waiting = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    return not other.is_set()


async def _drain(gateway: Gateway, settings: Settings) -> None:
    logger.info("stopping")
    gateway.plane.is_draining = True
    await asyncio.sleep(settings.drain_seconds)


async def id_key(settings: Settings, store: Store) -> bytes:
    """What signs prediction ids: as it is set, or shared through the store."""
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


@contextmanager
def _bind_grpc(settings: Settings, *, shared: bool = False) -> Iterator[socket | None]:
    """The gRPC port, reserved for its server, which binds it once more by itself; None if it is off."""
    if settings.grpc_port is None:
        yield None
        return
    if importlib.util.find_spec("grpc") is None or importlib.util.find_spec("tritonclient") is None:
        raise StartupError(
            "grpc_port is set and gRPC's libraries are missing: `pip install 'model-gateway[grpc]'`, or leave it unset"
        )
    with bind("grpc_port", settings.host, settings.grpc_port, shared=shared) as sock:
        yield sock
