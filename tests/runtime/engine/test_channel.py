from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from gateway.runtime.engine.channel import Channel, connect, listen
from gateway.runtime.engine.messages import Message, Refused, Unload
from tests.support.waiting import wait_until_async


class End:
    """One end, with what arrived there."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[Message] = []
        self.descriptors: list[int] = []
        self.closed = 0
        self.channel = Channel(sock, self._take, self._close)

    def _take(self, message: Message, descriptor: int | None) -> None:
        if message == Unload(-1):
            raise LookupError("as a bug would")
        self.messages.append(message)
        if descriptor is not None:
            self.descriptors.append(descriptor)

    def _close(self) -> None:
        self.closed += 1


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_side_that_does_not_read_gets_everything_later_in_order_and_descriptors_are_closed_here() -> None:
    async def scenario() -> None:
        one, other = pair()
        sender = End(one)
        sent = [Refused(number, "x" * 10_000) for number in range(200)]
        before = open_descriptors()
        for message in sent:
            reader, writer = os.pipe()
            os.close(writer)
            sender.channel.send(message, reader)
        assert open_descriptors() > before
        receiver = End(other)
        await wait_until_async(lambda: len(receiver.messages) == len(sent))
        assert receiver.messages == sent
        assert len(receiver.descriptors) == len(sent)
        for descriptor in receiver.descriptors:
            os.close(descriptor)
        assert open_descriptors() == before
        sender.channel.close()
        await wait_until_async(lambda: receiver.closed)
        assert (sender.closed, receiver.closed) == (1, 1)

    asyncio.run(scenario())


def test_the_end_of_the_other_side_closes_this_one_and_what_was_not_sent_is_closed_too() -> None:
    async def scenario() -> None:
        before = open_descriptors()
        one, other = pair()
        end = End(one)
        for number in range(200):
            reader, writer = os.pipe()
            os.close(writer)
            end.channel.send(Refused(number, "x" * 10_000), reader)
        other.close()
        await wait_until_async(lambda: end.closed)
        end.channel.send(Unload(1))
        end.channel.close()
        assert end.closed == 1
        assert open_descriptors() == before

    asyncio.run(scenario())


@pytest.mark.parametrize("junk", [b"no message", b'["Unload", -1]'])
def test_what_cannot_be_handled_closes_the_connection(junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        one, other = pair()
        end = End(one)
        other.send(junk)
        await wait_until_async(lambda: end.closed)
        assert end.messages == []
        assert other.recv(10) == b""
        other.close()

    asyncio.run(scenario())
    assert "closing the connection" in caplog.text


def test_a_new_listener_takes_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "engine.sock"
    for _ in range(2):
        listener = listen(path)
        connect(path).close()
        # Closed without removing the file, as when the process is killed.
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            connect(path)
