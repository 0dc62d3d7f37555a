"""What both doors to a prediction share: Starlette's endpoint and `fastpath.py` decode, refuse and answer alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import orjson

from gateway.api.compression import MIN_COMPRESSED_BYTES, WINDOW_BITS, compress
from gateway.errors import GatewayError, UnsupportedEncoding
from gateway.protocol.binary_codec import BINARY_HEADER, decode_raw_request, encode_response, json_length
from gateway.protocol.fast_json import FastDecoder
from gateway.protocol.json_codec import decode_request
from gateway.protocol.raw_tensor import RawParts
from gateway.serving.call import Call
from gateway.serving.dataplane import DataPlane
from gateway.telemetry.metrics import ERRORS, GatewayMetrics
from gateway.types import InferenceRequest, InferenceResponse, Inputs

Outcome: TypeAlias = InferenceResponse | GatewayError
Encode: TypeAlias = Callable[[InferenceResponse], tuple[bytes, int | None]]
"""Writes the body of an answer and says how much of it is JSON, None for all. Raises `GatewayError` for values that it
cannot hold."""
Body: TypeAlias = bytes | memoryview
Fields: TypeAlias = tuple[tuple[str, str], ...]
BINARY_TYPE = "application/octet-stream"


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes
    prediction_id: bytes = b""
    """Empty for errors."""
    timing: bytes = b""
    """Where the time went; empty for errors, or if nobody is to know."""
    fields: Fields = ()
    """Further header fields, lower case; without a Content-Type among them the body is JSON."""

    @property
    def is_common(self) -> bool:
        """JSON, with a status of 200 and nothing else to say."""
        return self.status == 200 and not self.fields


class InferenceDoor:
    """Bytes to a call, and what came of the call to an answer."""

    def __init__(self, plane: DataPlane, metrics: GatewayMetrics) -> None:
        self._plane = plane
        self._decoders = plane.registry.decoders
        self._metrics = metrics

    def submit(
        self,
        model: str,
        version: str | None,
        body: Body,
        headers: Mapping[str, str],
        call: Call,
        announced: str | None = None,
    ) -> None:
        """Decode and admit; `announced` is the value of Inference-Header-Content-Length.

        Raises `GatewayError`; otherwise the call is answered later, with an outcome.
        """
        decoder = self._decoders.get(model)
        if decoder is None:
            model = self._plane.model_of(model)
            decoder = self._decoders.get(model)
        if announced is not None:
            request, call.inputs = self._decode_binary(decoder, model, version, body, headers, announced)
        else:
            assert isinstance(body, bytes)  # noqa: S101 -- only what announces more than JSON comes as anything else
            decoded = decoder.decode(body, model, version, headers) if decoder is not None else None
            if decoded is None:
                request = decode_request(body, model, version, headers)
            else:
                request, call.template, call.numbers = decoded
            call.inputs = request.inputs
        self._plane.admit(call, request, headers)

    def _decode_binary(
        self,
        decoder: FastDecoder | None,
        model: str,
        version: str | None,
        body: Body,
        headers: Mapping[str, str],
        announced: str,
    ) -> tuple[InferenceRequest, Inputs]:
        length = json_length(announced, len(body))
        if length == 0:
            registry = self._plane.registry
            known = registry.latest(model) if version is None else registry.get(model, version)
            request = decode_raw_request(body, known.signature, model, version, headers)
        elif decoder is not None:
            return decoder.binary.decode(body, length, model, version, headers)
        else:
            request = decode_request(bytes(body[:length]), model, version, headers, RawParts(memoryview(body)[length:]))
        return request, request.inputs

    def abandon(self, call: Call) -> None:
        """Nobody waits for the answer any more."""
        self._plane.abandon(call)

    def answer(self, model: str, outcome: Outcome, call: Call, encode: Encode = encode_response) -> Answer:
        """The answer to what `submit` raised or the call got; counts errors."""
        if isinstance(outcome, InferenceResponse):
            try:
                body, length = encode(outcome)
            except GatewayError as error:
                outcome = call.error = error
            else:
                fields: Fields = () if length is None else (("content-type", BINARY_TYPE), (BINARY_HEADER, str(length)))
                outcome.note_encoded()
                return Answer(200, body, call.prediction_id, call.timing, fields)
        elif self._plane.traces is not None:
            self._plane.traces.failed(call, model, outcome)
        self._metrics.count(ERRORS, self._plane.counted_as(model), outcome.code)
        return Answer(outcome.status, orjson.dumps({"error": outcome.message}), fields=_error_fields(outcome))


def _error_fields(error: GatewayError) -> Fields:
    if error.retry_after is not None:
        return (("retry-after", str(max(1, math.ceil(error.retry_after)))),)
    return (("accept-encoding", ", ".join(WINDOW_BITS)),) if isinstance(error, UnsupportedEncoding) else ()


def is_worth_compressing(body: bytes) -> bool:
    """Whether an answer gains from it."""
    return len(body) >= MIN_COMPRESSED_BYTES


def compressed(answer: Answer, coding: str) -> Answer:
    """The answer in a coding, or as it is where that is no shorter. Takes its time: not for the event loop."""
    body = compress(answer.body, coding)
    if len(body) >= len(answer.body):
        return answer
    return answer._replace(body=body, fields=(*answer.fields, ("content-encoding", coding)))
