"""One stream of predictions: read with a bound on what is in flight, written one answer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from gateway.api.grpc.status import refuse
from gateway.errors import Unavailable

MAX_STREAM_IN_FLIGHT = 64
"""Messages of one stream that may wait for their answers to be sent; past it the stream is not read."""


class AnswerStream:
    """Reads messages, has each answered, and sends the answers as they are done."""

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        answer: Callable[[Any], Awaitable[Any]],
        closing: asyncio.Event,
    ) -> None:
        """`answer` raises nothing; once `closing` is set no more messages are read."""
        self._context = context
        self._answer = answer
        self._closing = closing
        self._room = asyncio.Semaphore(MAX_STREAM_IN_FLIGHT)
        # gRPC takes one message at a time.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until the client has said all, or the gateway stops. A client that leaves cancels this, and all in flight."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            async with asyncio.TaskGroup() as answers:
                is_done = await self._read(answers, closing)
        finally:
            closing.cancel()
        if not is_done:
            await refuse(self._context, Unavailable("the gateway is shutting down", retry_after=1.0))

    async def _read(self, answers: asyncio.TaskGroup, closing: asyncio.Future[Any]) -> bool:
        """Whether the client has said all; False if the gateway stops."""
        while True:
            await self._room.acquire()
            reading = asyncio.ensure_future(self._context.read())
            try:
                await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not reading.done():
                    reading.cancel()
            if not reading.done():
                return False
            message = reading.result()
            if message is grpc.aio.EOF:
                return True
            answers.create_task(self._answer_one(message))

    async def _answer_one(self, message: Any) -> None:
        answer = await self._answer(message)
        async with self._turn:
            # If the client has just left this fails, and the cancellation of the stream is on its way.
            with suppress(grpc.aio.InternalError):
                await self._context.write(answer)
        self._room.release()
