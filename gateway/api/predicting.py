"""A prediction asked for through Starlette: read, submit, wait, answer. A client that leaves abandons its call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import JSON_TYPE
from gateway.api.body import read_body
from gateway.api.compression import accepted_encoding, content_encoding, decompress
from gateway.api.door import Answer, Encode, InferenceDoor, Outcome, compressed, is_worth_compressing
from gateway.errors import GatewayError
from gateway.serving.call import Call

PREDICTION_ID = "Prediction-Id"
CLIENT_LEFT = 499
"""nginx's status for it; nobody reads it."""

Submit: TypeAlias = Callable[[bytes, Call], Encode]
"""Takes a body and admits the call, or raises `GatewayError`; says how its answer is written."""


async def predict(request: Request, door: InferenceDoor, max_body_bytes: int, submit: Submit) -> Response:
    """The answer to a prediction request of the model that the path names."""
    model = request.path_params["model"]
    answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    call = Call(answered.set_result)
    try:
        encode = submit(await _content(request, max_body_bytes), call)
    except GatewayError as error:
        return _response(door.answer(model, error))
    if not await _is_answered(answered, request, door, call):
        return Response(status_code=CLIENT_LEFT)
    answer = door.answer(model, answered.result(), encode)
    coding = accepted_encoding(request.headers.get("accept-encoding", ""))
    if coding is not None and is_worth_compressing(answer.body):
        answer = await asyncio.to_thread(compressed, answer, coding)
    return _response(answer)


async def _content(request: Request, limit: int) -> bytes:
    """The body as it was before it was compressed, if it was. `limit` holds before and after."""
    coding = content_encoding(request.headers.get("content-encoding"))
    body = await read_body(request, limit)
    return body if coding is None else await asyncio.to_thread(decompress, body, coding, limit)


async def _is_answered(answered: asyncio.Future[Outcome], request: Request, door: InferenceDoor, call: Call) -> bool:
    """Wait for the outcome; False if the client leaves before it."""
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answered, left), return_when=asyncio.FIRST_COMPLETED)
        return answered.done()
    finally:
        # Also on cancellation: the rows of a caller that is gone are not run.
        if not answered.done():
            door.abandon(call)
        left.cancel()


def _response(answer: Answer) -> Response:
    headers = {"content-type": JSON_TYPE, **dict(answer.fields)}
    if answer.prediction_id:
        headers[PREDICTION_ID] = answer.prediction_id
    return Response(answer.body, answer.status, headers)
