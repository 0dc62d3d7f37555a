"""Which sockets may stand on one port: the workers', and nobody else's."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.listener import address, bind, bind_private, reserve

HOST = "127.0.0.1"


def listen_on(sock: socket.socket, port: int) -> None:
    sock.bind((HOST, port))
    sock.listen()


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_a_reserved_port_is_shared_with_those_who_are_meant_to_and_gets_no_connections() -> None:
    with ExitStack() as stack:
        port = port_of(stack.enter_context(reserve("port", HOST, 0)))
        shared = [stack.enter_context(bind("port", HOST, port, shared=True)) for _ in range(2)]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port), timeout=5.0)
        for sock in shared:
            sock.listen()
            sock.settimeout(0.0)
        connections = [stack.enter_context(socket.create_connection((HOST, port), timeout=5.0)) for _ in range(64)]
        got = [0, 0]
        for index, sock in enumerate(shared):
            try:
                while True:
                    stack.enter_context(sock.accept()[0])
                    got[index] += 1
            except BlockingIOError:
                pass
        assert sum(got) == len(connections)
        assert min(got) > 0


@pytest.mark.parametrize("has_workers", [False, True])
def test_a_stranger_cannot_listen_there_and_a_second_gateway_is_told(has_workers: bool) -> None:
    with ExitStack() as stack:
        port = port_of(stack.enter_context(reserve("port", HOST, 0)))
        if has_workers:
            stack.enter_context(bind("port", HOST, port, shared=True)).listen()
        stranger = stack.enter_context(socket.socket())
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            listen_on(stranger, port)
        for another in (reserve, bind):
            with pytest.raises(StartupError, match=f"port {HOST}:{port}: Address already in use; choose another with"):
                stack.enter_context(another("port", HOST, port))


def test_a_port_with_connections_of_an_earlier_gateway_can_be_had() -> None:
    with bind("port", HOST, 0) as earlier:
        earlier.listen()
        port = port_of(earlier)
        with socket.create_connection((HOST, port), timeout=5.0) as client:
            # Whoever closes first is left in TIME_WAIT.
            earlier.accept()[0].close()
            assert client.recv(1) == b""
    with reserve("port", HOST, port), bind("port", HOST, port, shared=True) as worker:
        worker.listen()


def test_a_private_socket_is_the_users_alone_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.touch()
    with bind_private(path) as sock:
        assert path.stat().st_mode & 0o777 == 0o600
        assert address(sock) == str(path)


def test_an_address_of_ipv6_has_brackets() -> None:
    with bind("port", "::1", 0) as sock:
        assert address(sock) == f"[::1]:{port_of(sock)}"
