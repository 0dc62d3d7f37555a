"""One inference request of a connection: its call, and its place in the order of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.door import Answer, Outcome, compressed, is_worth_compressing
from gateway.api.recognition import Head
from gateway.protocol.row_texts import row_bodies
from gateway.serving.call import Call, Endpoint
from gateway.types import BatchOutputs

if TYPE_CHECKING:
    from gateway.api.fastpath import FastProtocol


class Slot(Call):
    """A fast request and its place in the order of answers."""

    sent: Answer | None = None
    """The answer, once there is one."""

    def __init__(self, protocol: FastProtocol, head: Head, is_last: bool) -> None:
        self.protocol = protocol
        self.head = head
        self.is_last = is_last
        """The connection closes after this answer, as the client asked."""

    @property
    def endpoint(self) -> Endpoint:
        """As Starlette would name it."""
        return self.head.target.endpoint

    def deliver(self, run: BatchOutputs) -> None:
        """The common answer, which was written with those of the whole run."""
        request = self.request
        is_special = request.forms is not None or request.id is not None or request.outputs is not None
        if is_special or self.rows != 1 or self.is_cancelled:
            super().deliver(run)
            return
        bodies = run.bodies if run.bodies is not None else row_bodies(run, self.choice.version.key)
        if not bodies:
            super().deliver(run)
            return
        if run.on_encoded is not None and not self.timing:
            run.on_encoded()
        self.is_answered = True
        self.protocol.send_ok(self, bodies[self.start])

    def answer(self, outcome: Outcome) -> None:
        """Turn the outcome into an answer, once, and send it as soon as its turn comes."""
        if not self.is_cancelled and not self.is_answered:
            self.is_answered = True
            self.send(self.protocol.door.answer(self.head.target.model, outcome, self))

    def send(self, answer: Answer) -> None:
        """Send the answer as soon as its turn comes."""
        self.protocol.send(self, answer)


class CompressingSlot(Slot):
    """Of a client that would rather have a long answer compressed, which takes a thread meanwhile."""

    def deliver(self, run: BatchOutputs) -> None:
        """The common answer, unless it is long."""
        bodies = row_bodies(run, self.choice.version.key) if self.request.forms is None else None
        if bodies and is_worth_compressing(bodies[self.start]):
            Call.deliver(self, run)
        else:
            super().deliver(run)

    def send(self, answer: Answer) -> None:
        """Send the answer as soon as it is compressed and its turn comes."""
        if self.head.coding is None or not is_worth_compressing(answer.body):
            super().send(answer)
            return
        coded = self.protocol.loop.run_in_executor(None, compressed, answer, self.head.coding)
        coded.add_done_callback(lambda done: self.protocol.send(self, answer if done.exception() else done.result()))
