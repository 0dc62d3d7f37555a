"""One prediction request on its way through the data plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from gateway.errors import GatewayError
from gateway.prediction_id import IdSigner, SummaryKind
from gateway.runtime.batcher import Work
from gateway.runtime.registry import ModelVersion
from gateway.types import InferenceRequest, InferenceResponse

Reply: TypeAlias = Callable[[InferenceResponse | GatewayError], None]
"""Called exactly once on the event loop, unless the call is cancelled."""

DIRECT = ""
"""Variant of a request that names its version: no rule chose it."""


class Choice:
    """Who answers a request: made once for each variant in force, and for each version asked for by number."""

    __slots__ = ("bare_prefix", "prefix", "revision", "variant", "version")

    def __init__(self, version: ModelVersion, variant: str = DIRECT, revision: int = 0) -> None:
        self.version = version
        self.variant = variant
        self.revision = revision
        key = version.key
        kind = version.answers.kind if version.answers is not None else SummaryKind.NONE
        self.prefix = IdSigner.prefix(key.name, revision, variant, key.version, kind)
        """Of the prediction ids that say what was answered."""
        self.bare_prefix = IdSigner.prefix(key.name, revision, variant, key.version, SummaryKind.NONE)


class Call(Work):
    """A request, where it was routed and who waits for the answer."""

    __slots__ = ("choice", "is_answered", "prediction_id", "reply", "request")

    def __init__(self, request: InferenceRequest, choice: Choice, rows: int, reply: Reply) -> None:
        # Every field in one place, without the base class's turn: this runs once for each request.
        self.inputs = request.inputs
        self.rows = rows
        self.start = 0
        self.bucket = ()
        self.enqueued = 0.0
        self.is_cancelled = False
        self.is_queued = False
        self.schedule = None
        self.request = request
        self.choice = choice
        self.reply = reply
        self.prediction_id = ""
        self.is_answered = False

    @property
    def variant(self) -> str:
        """Name of the variant that answers."""
        return self.choice.variant

    @property
    def revision(self) -> int:
        """Of the route that chose it; 0 for none."""
        return self.choice.revision

    def answer(self, response: InferenceResponse | GatewayError) -> None:
        """Tell the caller, once."""
        if not self.is_cancelled and not self.is_answered:
            self.is_answered = True
            self.reply(response)

    def fail(self, error: GatewayError) -> None:
        """Tell the caller what went wrong."""
        if not self.is_cancelled and not self.is_answered:
            self.choice.version.statistics.record_failure(self.enqueued)
        self.answer(error)
