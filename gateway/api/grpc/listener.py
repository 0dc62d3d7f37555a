"""The gRPC server on its port, from start to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from gateway.api.grpc.service import InferenceService
from gateway.errors import StartupError

MAX_CONCURRENT_STREAMS = 1024
"""RPCs of one connection at a time; a client's further ones wait on its side."""
KEEP_ALIVE_MS = 75_000
"""A connection that is silent for as long is asked whether its client is still there."""


class GrpcListener:
    """A `grpc.aio` server on an address of its own."""

    def __init__(
        self,
        service: InferenceService,
        address: str,
        *,
        max_message_bytes: int,
        shutdown_timeout: float,
        tls: tuple[Path, Path] | None = None,
        is_shared: bool = False,
    ) -> None:
        """`tls` is the certificate chain and its key; the port of several workers `is_shared`.

        Raises `StartupError` if the address cannot be had.
        """
        self._service = service
        self._shutdown_timeout = shutdown_timeout
        options = (
            # Also of what a compressed message becomes.
            ("grpc.max_receive_message_length", max_message_bytes),
            # Answers are as long as they are, as over HTTP.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
            ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
            # Otherwise two gateways on one port would share its connections instead of one being told.
            ("grpc.so_reuseport", int(is_shared)),
        )
        self._server = grpc.aio.server(handlers=[service.handlers()], options=options)
        try:
            if tls is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, _credentials(*tls))
        except RuntimeError as error:
            raise StartupError(f"grpc_port {address}: {error}") from error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Accept RPCs; at the end refuse new ones and answer what is in flight."""
        await self._server.start()
        try:
            yield
        finally:
            self._service.close()
            await self._server.stop(self._shutdown_timeout)


def _credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
