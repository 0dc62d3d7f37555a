"""The rows of callers on their way through a batcher, and what a run made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from gateway.errors import GatewayError
from gateway.protocol.parameters import Schedule
from gateway.types import Array, NumberTemplate, cut

Bucket: TypeAlias = tuple[Hashable, ...]
"""The shape of one row of each input, or what else must be equal: only works of one bucket share a run."""


Shapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Those of a bucket, without what else tells it from others."""


class Work(ABC):
    """The rows of one caller on their way through the queue."""

    # On the class, so that a new work costs only what differs from these: one is made for each request.
    inputs: dict[str, Array]
    rows: int
    template: NumberTemplate | None = None
    """Reads the only input, where `inputs` is empty because its numbers are still text."""
    numbers = b""
    start = 0
    """Its first row in the batch."""
    bucket: Bucket = ()
    enqueued = 0.0
    """Monotonic seconds; 0 until it is."""
    schedule: Schedule | None = None
    """How it wants to be queued, if it says so."""
    is_cancelled = False
    is_queued = False

    def __init__(self, inputs: dict[str, Array], rows: int) -> None:
        self.inputs = inputs
        self.rows = rows

    def cancel(self) -> None:
        """The caller left: its rows are dropped when their turn comes, and nobody is answered."""
        self.is_cancelled = True

    def shapes(self, names: list[str]) -> Bucket:
        """Of one row of each input."""
        if self.template is not None:
            return (self.template.shape[1:],)
        return tuple(self.inputs[name].shape[1:] for name in names)

    def settle(self) -> None:
        """Read what is still text. Raises `InvalidRequest` naming what is wrong with it."""
        if self.template is not None:
            self.inputs = self.template.decode(self.numbers)
            self.template = None

    def refuse(self, error: GatewayError) -> None:
        """What was still text when the batch was formed is not what it should be."""
        self.fail(error)

    @abstractmethod
    def fail(self, error: GatewayError) -> None:
        """The rows could not be run, or their answer not be given; nothing to do if it was."""


@dataclass(slots=True)
class Batch:
    """One run, as it is reported: the single timing record that metrics and the request log are fed from."""

    works: list[Work]
    inputs: dict[str, Array]
    outputs: list[Array]
    """In the order of the signature."""
    rows: int
    started: float
    """Monotonic seconds, as are `Work.enqueued` and `finished`."""
    finished: float
    left: str = "idle"
    """Why it was formed when it was, in one of the batcher's words."""
    encoded: float = 0.0
    """When the first answer was written; 0 until then."""
    answered: float = 0.0
    """When every caller had been; 0 until then."""

    def rows_of(self, work: Work, array: Array, axis: int = 0) -> Array:
        """A caller's rows of one input or output, which lie on `axis`; all of it if the caller ran alone."""
        return array if len(self.works) == 1 else cut(array, axis, work.start, work.start + work.rows)


def gather(works: list[Work], rows: int) -> dict[str, Array] | None:
    """The inputs of a run, the callers' `rows` rows in order; None if there are none, or some must be settled first."""
    if not works:
        return None
    template = works[0].template
    if template is None and len(works) == 1:
        return works[0].inputs
    texts = [work.numbers for work in works if work.template is not None]
    if template is not None and len(texts) == len(works):
        array = template.read_all(texts, rows)
        return None if array is None else {template.name: array}
    if texts:
        return None
    return {name: np.concatenate([work.inputs[name] for work in works]) for name in works[0].inputs}


def settled(works: list[Work]) -> list[Work]:
    """Read each caller's text by itself, so that only the one with the bad values gets the error."""
    readable = []
    for work in works:
        try:
            work.settle()
        except GatewayError as error:
            work.refuse(error)
        else:
            readable.append(work)
    return readable
