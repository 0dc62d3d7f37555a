"""A large body on its way from the socket to a tensor: received where it stays.

The bytes of a body that comes in pieces are copied three times, out of uvloop's buffer, by the parser, and when the
pieces are joined. For a body of tensors that is most of what a request costs. Here the operating system writes them
straight into one block of memory, in which the first tensor lies aligned, so that numpy need not copy it either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httptools
import numpy as np

from gateway.api.recognition import Head
from gateway.errors import GatewayError
from gateway.protocol.binary_codec import json_length

if TYPE_CHECKING:
    from gateway.api.fastpath import FastProtocol

LARGE_BODY_BYTES = 64 * 1024
ALIGNMENT = 64
"""Of the first tensor, in bytes: what the widest vector instructions like."""


class LargeBody(asyncio.BufferedProtocol):
    """Takes the rest of one body off the connection, and gives the connection back."""

    def __init__(self, connection: FastProtocol, head: Head, start: memoryview, *, is_last: bool) -> None:
        """`start` is what came of the body with the head; `is_last` is for `FastProtocol.on_large_body`."""
        self._connection = connection
        self._head = head
        self._is_last = is_last
        self._body = _aligned(head)
        self._filled = len(start)
        self._body[: self._filled] = start

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the rest belongs: not a byte of the next request fits in."""
        return self._body[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """So many bytes came."""
        self._filled += count
        self._connection.last_data = self._connection.loop.time()
        if self._filled == self._head.length:
            self._connection.on_large_body(self._head, self._body, is_last=self._is_last)

    def eof_received(self) -> None:
        """The client sends no more."""
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read its answers."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._connection.resume_writing()


def new_parser(connection: FastProtocol) -> httptools.HttpRequestParser:
    """One that has read nothing yet, set up as uvicorn does it."""
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def hand_over(connection: FastProtocol, protocol: asyncio.BaseProtocol) -> None:
    """Let `protocol` have what comes next. Transports take note of a change only where they begin to read."""
    transport = connection.transport
    transport.pause_reading()
    transport.set_protocol(protocol)
    if not connection.flow.read_paused:
        transport.resume_reading()


def _aligned(head: Head) -> memoryview:
    """Room for the body, with the end of its JSON at a multiple of `ALIGNMENT`. Takes memory only as it is filled."""
    try:
        first = json_length(head.announced or "0", head.length)
    except GatewayError:
        # Whoever decodes the body will say so.
        first = 0
    block = np.empty(head.length + ALIGNMENT, np.uint8)
    address: int = block.__array_interface__["data"][0]
    offset = -(address + first) % ALIGNMENT
    return block[offset : offset + head.length].data
