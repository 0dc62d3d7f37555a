"""A prediction asked for through Starlette: read, submit, wait, answer. A client that leaves abandons its call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import JSON_TYPE
from gateway.api.body import read_body
from gateway.api.compression import accepted_encoding, content_encoding, decompress
from gateway.api.door import Answer, Encode, InferenceDoor, Outcome, compressed, is_worth_compressing
from gateway.errors import GatewayError
from gateway.protocol.binary_codec import encode_response
from gateway.protocol.parameters import TIMEOUT_HEADER, schedule_of_header
from gateway.serving.call import Call, Endpoint
from gateway.telemetry.trace_context import TRACEPARENT

PREDICTION_ID = "Prediction-Id"
SERVER_TIMING = "Server-Timing"
CLIENT_LEFT = 499
"""nginx's status for it; nobody reads it."""

Submit: TypeAlias = Callable[[bytes, Call], Encode]
"""Takes a body and admits the call, or raises `GatewayError`; says how its answer is written."""


class AwaitedCall(Call):
    """A request whose answer an endpoint waits for.

    The answer is written at once: whether that can be done belongs to the trace, which is made with the batch's record.
    """

    def __init__(self, door: InferenceDoor, request: Request) -> None:
        self._door = door
        self._model = request.path_params["model"]
        self._endpoint = Endpoint(request.scope["route"].path_format, request.scope["path"])
        self.encode: Encode = encode_response
        self.traceparent = request.headers.get(TRACEPARENT, "")
        self.query = request.scope["query_string"].decode("latin-1")
        self.written: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    @property
    def endpoint(self) -> Endpoint:
        """Of the protocol that it came by."""
        return self._endpoint

    def answer(self, outcome: Outcome) -> None:
        """Turn the outcome into an answer, once."""
        if not self.is_cancelled and not self.is_answered:
            # Whoever calls this can still answer with an error if it raises.
            answer = self._door.answer(self._model, outcome, self, self.encode)
            self.is_answered = True
            self.written.set_result(answer)


async def predict(request: Request, door: InferenceDoor, max_body_bytes: int, submit: Submit) -> Response:
    """The answer to a prediction request of the model that the path names."""
    call = AwaitedCall(door, request)
    try:
        if TIMEOUT_HEADER in request.headers:
            call.schedule = schedule_of_header(request.headers[TIMEOUT_HEADER])
        # No call is answered in the turn of the loop in which it is admitted.
        body = await _content(request, max_body_bytes)
        call.received = time.monotonic()
        call.encode = submit(body, call)
    except GatewayError as error:
        call.answer(error)
    if not await _is_answered(call, request, door):
        return Response(status_code=CLIENT_LEFT)
    answer = call.written.result()
    coding = accepted_encoding(request.headers.get("accept-encoding", ""))
    if coding is not None and is_worth_compressing(answer.body):
        answer = await asyncio.to_thread(compressed, answer, coding)
    return _response(answer)


async def _content(request: Request, limit: int) -> bytes:
    """The body as it was before it was compressed, if it was. `limit` holds before and after."""
    coding = content_encoding(request.headers.get("content-encoding"))
    body = await read_body(request, limit)
    return body if coding is None else await asyncio.to_thread(decompress, body, coding, limit)


async def _is_answered(call: AwaitedCall, request: Request, door: InferenceDoor) -> bool:
    """Wait for the answer; False if the client leaves before it."""
    if call.is_answered:
        return True
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((call.written, left), return_when=asyncio.FIRST_COMPLETED)
        return call.is_answered
    finally:
        # Also on cancellation: the rows of a caller that is gone are not run. Does nothing once it is answered.
        door.abandon(call)
        left.cancel()


def _response(answer: Answer) -> Response:
    headers = {"content-type": JSON_TYPE, **dict(answer.fields)}
    if answer.prediction_id:
        headers[PREDICTION_ID] = answer.prediction_id.decode()
    if answer.timing:
        headers[SERVER_TIMING] = answer.timing.decode()
    return Response(answer.body, answer.status, headers)
