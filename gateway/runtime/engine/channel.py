"""Messages and file descriptors over a Unix socket, on the event loop.

SOCK_SEQPACKET keeps the borders between messages, so one system call sends one, wakes the other side and is all the
doorbell there is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gateway.runtime.engine.messages import MAX_MESSAGE_BYTES, Message, decode, encode

logger = logging.getLogger(__name__)

BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_LEN(_DESCRIPTOR.size)
"""Room for one descriptor."""


class Channel:
    """One end of a connection. Closed for good as soon as anything is wrong with it."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, int | None], None],
        on_close: Callable[[], None],
    ) -> None:
        """`on_message` gets each message and the descriptor that came with it, which it must close.

        Both are called on the running loop; `on_close` once, whoever closes.
        """
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        # Bounded by what its owner may have in flight: each message asks for an answer or is one.
        self._unsent: deque[tuple[bytes, int | None]] = deque()
        self.is_closed = False

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send now, or as soon as the other side reads. `descriptor` is closed once it is sent.

        Raises `ValueError` if the message is too long. Nothing happens on a closed channel.
        """
        try:
            data = encode(message)
        except ValueError:
            close_descriptor(descriptor)
            raise
        if self.is_closed:
            close_descriptor(descriptor)
        elif self._unsent:
            self._unsent.append((data, descriptor))
        elif not self._try_send(data, descriptor):
            self._unsent.append((data, descriptor))
            self._loop.add_writer(self._socket.fileno(), self._write)

    def close(self) -> None:
        """What was not sent yet is lost."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._unsent:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for _, descriptor in self._unsent:
            close_descriptor(descriptor)
        self._unsent.clear()
        self._on_close()

    def _try_send(self, data: bytes, descriptor: int | None) -> bool:
        ancillary = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(descriptor))]
        try:
            self._socket.sendmsg([data], ancillary)
        except BlockingIOError:
            return False
        except OSError as error:
            # Not from here: whoever sends is in the middle of something.
            logger.debug("a message could not be sent: %s", error)
            self._loop.call_soon(self.close)
        close_descriptor(descriptor)
        return True

    def _write(self) -> None:
        while self._unsent and self._try_send(*self._unsent[0]):
            self._unsent.popleft()
        if not self._unsent and not self.is_closed:
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        # One message a turn: there is rarely a second, and to find none takes a system call too.
        try:
            size, ancillary, _, _ = self._socket.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            logger.debug("a connection broke: %s", error)
            size, ancillary = 0, []
        if size:
            self._take(size, _descriptor_in(ancillary))
        else:
            self.close()

    def _take(self, size: int, descriptor: int | None) -> None:
        try:
            message = decode(memoryview(self._buffer)[:size])
        except (ValueError, KeyError, TypeError):
            logger.exception("not a message; closing the connection")
            close_descriptor(descriptor)
            self.close()
            return
        try:
            self._on_message(message, descriptor)
        except Exception:
            # A bug or another release on the other side: without its answers nobody there must wait.
            logger.exception("a %s could not be handled; closing the connection", type(message).__name__)
            self.close()


def connect(path: Path) -> socket.socket:
    """A connection to the socket at `path`. Raises `OSError` if nobody listens there, or somebody else does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(str(path))
        if not is_same_user(sock):
            raise PermissionError(f"{path} belongs to another user")
    except OSError:
        sock.close()
        raise
    return sock


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, where an old one may lie. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def is_same_user(sock: socket.socket) -> bool:
    """Whether the process on the other side runs as the user of this one (unix(7), SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())


def _descriptor_in(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.size):
            descriptor: int = _DESCRIPTOR.unpack(data)[0]
            return descriptor
    return None


def close_descriptor(descriptor: int | None) -> None:
    """Of what came with a message, if anything did."""
    if descriptor is not None:
        os.close(descriptor)
