"""One prediction request on its way through the data plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gateway.errors import GatewayError
from gateway.runtime.batcher import Work
from gateway.runtime.registry import ModelVersion
from gateway.types import InferenceRequest, InferenceResponse

Reply: TypeAlias = Callable[[InferenceResponse | GatewayError], None]
"""Called exactly once on the event loop, unless the call is cancelled."""

DIRECT = ""
"""Variant of a request that names its version: no rule chose it."""


class Call(Work):
    """A request, where it was routed and who waits for the answer."""

    __slots__ = ("is_answered", "prediction_id", "reply", "request", "revision", "variant", "version")

    def __init__(
        self,
        request: InferenceRequest,
        version: ModelVersion,
        variant: str,
        revision: int,
        rows: int,
        reply: Reply,
    ) -> None:
        super().__init__(request.inputs, rows)
        self.request = request
        self.version = version
        self.variant = variant
        self.revision = revision
        self.reply = reply
        self.prediction_id = ""
        self.is_answered = False

    def answer(self, response: InferenceResponse | GatewayError) -> None:
        """Tell the caller, once."""
        if not self.is_cancelled and not self.is_answered:
            self.is_answered = True
            self.reply(response)

    def fail(self, error: GatewayError) -> None:
        """Tell the caller what went wrong."""
        self.answer(error)
