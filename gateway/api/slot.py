"""One inference request of a connection: its call, and its place in the order of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.door import Answer, Outcome
from gateway.api.recognition import Target
from gateway.protocol.row_texts import row_bodies
from gateway.serving.call import Call, Endpoint
from gateway.types import BatchOutputs

if TYPE_CHECKING:
    from gateway.api.fastpath import FastProtocol


class Slot(Call):
    """A fast request and its place in the order of answers."""

    sent: Answer | None = None
    """The answer, once there is one."""

    def __init__(self, protocol: FastProtocol, target: Target, is_last: bool) -> None:
        self.protocol = protocol
        self.target = target
        self.is_last = is_last
        """The connection closes after this answer, as the client asked."""

    @property
    def endpoint(self) -> Endpoint:
        """As Starlette would name it."""
        return self.target.endpoint

    def deliver(self, run: BatchOutputs) -> None:
        """The common answer, which was written with those of the whole run."""
        request = self.request
        bodies = run.bodies if run.bodies is not None else row_bodies(run, self.choice.version.key)
        if not bodies or self.rows != 1 or request.id is not None or request.outputs is not None or self.is_cancelled:
            super().deliver(run)
            return
        self.is_answered = True
        self.protocol.send_ok(self, bodies[self.start])

    def answer(self, outcome: Outcome) -> None:
        """Turn the outcome into an answer, once, and send it as soon as its turn comes."""
        if not self.is_cancelled and not self.is_answered:
            self.is_answered = True
            self.protocol.send(self, self.protocol.door.answer(self.target.model, outcome, self))
