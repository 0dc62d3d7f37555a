"""Sockets, and uvicorn on one of them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import StartupError

KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time-outs of common load balancers (60 s), so that they close first and lose no request."""


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
        task = asyncio.create_task(self.serve(sockets=[self._socket]))
        await self._startup_is_over.wait()
        if not self.started:
            try:
                await task
            except OSError as error:
                raise StartupError(
                    f"{address(self._socket)}: {os.strerror(error.errno or 0)}; choose another port"
                ) from error
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


@contextmanager
def bind(name: str, host: str, port: int, *, shared: bool = False) -> Iterator[socket.socket]:
    """A socket on the port that the setting `name` asks for, not listening yet.

    A `shared` one stands beside others that are shared too and belong to the same user (SO_REUSEPORT): those that
    listen get the connections, each its part. Raises `StartupError`.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"{name} {host}:{port}: {error.strerror}") from error
    with sock:
        option = name.replace("_", "-")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind(where)
        except OSError as error:
            raise StartupError(f"{name} {host}:{port}: {error.strerror}; choose another with --{option}") from error
        yield sock


@contextmanager
def reserve(name: str, host: str, port: int) -> Iterator[socket.socket]:
    """Keep the port for sockets that are bound as `shared`, also while none of them is there; this one never listens.

    It is bound alone, so that a second gateway is refused, and shared only then. SO_REUSEADDR, which lets it have a
    port with connections of an earlier gateway in TIME_WAIT, would let strangers listen there, so it goes.
    """
    with bind(name, host, port) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield sock


@contextmanager
def bind_private(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that the user alone may open; what was there before is gone."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        # Nobody can connect before it listens.
        path.chmod(0o600)
        yield sock


def address(sock: socket.socket) -> str:
    """Where it is bound, for a URL or a message."""
    where = sock.getsockname()
    if isinstance(where, str):
        return where
    host, port = where[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
