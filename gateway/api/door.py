"""What both doors to a prediction share: Starlette's endpoint and `fastpath.py` decode, refuse and answer alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import orjson

from gateway.errors import GatewayError
from gateway.protocol.json_codec import decode_request, encode_response
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.telemetry.metrics import ERRORS, GatewayMetrics
from gateway.types import InferenceResponse

Outcome: TypeAlias = InferenceResponse | GatewayError
Encode: TypeAlias = Callable[[InferenceResponse], bytes]
"""Writes the body of an answer. Raises `GatewayError` for values that it cannot hold."""


Answer: TypeAlias = tuple[int, bytes, str, int | None]
"""An HTTP answer: status, body, prediction id (empty for errors), seconds for `Retry-After`."""


class InferenceDoor:
    """Bytes to a call, and what came of the call to an answer."""

    def __init__(self, plane: DataPlane, metrics: GatewayMetrics) -> None:
        self._plane = plane
        self._decoders = plane.registry.decoders
        self._metrics = metrics

    def submit(self, model: str, version: str | None, body: bytes, headers: Mapping[str, str], call: Call) -> None:
        """Decode and admit. Raises `GatewayError`; otherwise the call is answered later, with an outcome."""
        decoder = self._decoders.get(model)
        decoded = decoder.decode(body, model, version, headers) if decoder is not None else None
        if decoded is None:
            request = decode_request(body, model, version, headers)
        else:
            request, call.template, call.numbers = decoded
        call.inputs = request.inputs
        self._plane.admit(call, request, headers)

    def abandon(self, call: Call) -> None:
        """Nobody waits for the answer any more."""
        self._plane.abandon(call)

    def answer(self, model: str, outcome: Outcome, call: Call, encode: Encode = encode_response) -> Answer:
        """The answer to what `submit` raised or the call got; counts errors."""
        if isinstance(outcome, InferenceResponse):
            try:
                return 200, encode(outcome), outcome.prediction_id, None
            except GatewayError as error:
                outcome = call.error = error
        elif self._plane.traces is not None:
            self._plane.traces.failed(call, model, outcome)
        self._metrics.count(ERRORS, model if model in self._plane.registry.names else "", outcome.code)
        retry_after = None if outcome.retry_after is None else max(1, math.ceil(outcome.retry_after))
        return outcome.status, orjson.dumps({"error": outcome.message}), "", retry_after
