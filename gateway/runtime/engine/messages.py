"""What workers and the engine tell each other: a JSON array a message, its kind first. No pickle: data stays data.

Tensors are not in it, they lie in shared memory (`tensors.py`). Times are monotonic seconds, which all processes of a
machine share.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import orjson

from gateway.errors import (
    DeadlineExceeded,
    DeadlineUnreachable,
    GatewayError,
    InferenceFailed,
    InvalidRequest,
    TooManyRequests,
    Unavailable,
)
from gateway.runtime.engine.tensors import Places
from gateway.runtime.layout import Layout
from gateway.runtime.registry import ModelVersion
from gateway.runtime.repository import Stamp
from gateway.runtime.session import Device
from gateway.types import Signature, TensorSpec

MAX_MESSAGE_BYTES = 128 * 2**10
"""A signature of some thousand tensors. The kernel keeps a message of a Unix socket in one piece up to 200 kB."""


class Hello(NamedTuple):
    """A worker is there; with it comes the descriptor of its arena."""

    arena_bytes: int


class Welcome(NamedTuple):
    """The engine is there."""

    device: Device


class Load(NamedTuple):
    """The worker wants a version, and numbers the request."""

    number: int
    name: str
    version: str


class Loaded(NamedTuple):
    """Here it is: known by `handle` on this connection."""

    number: int
    handle: int
    inputs: list[list[Any]]
    outputs: list[list[Any]]
    shares_runs: bool
    is_put_together_here: bool
    """Whether only the engine can put the rows of callers together, as it pads them; a message is one caller's then."""
    batch_rows: int
    """Rows that a run may have now, and the most runs at once."""
    runs: int
    stamp: list[Any]
    """Of the files that were read, and their digest."""
    digest: str
    memory_bytes: int
    """That it was measured to hold."""
    manifest_bytes: int
    """With it comes a descriptor of as much JSON, the manifest as it was verified; 0 for a version without."""

    @property
    def signature(self) -> Signature:
        """Of the version."""
        return Signature(_specs(self.inputs), _specs(self.outputs))

    @property
    def layout(self) -> Layout:
        """By which a worker puts the rows of its callers together."""
        return Layout(self.signature, shares_runs=self.shares_runs and not self.is_put_together_here)

    @property
    def files(self) -> Stamp:
        """The stamp."""
        return tuple(map(_hashable, self.stamp))


class Refused(NamedTuple):
    """It cannot be loaded."""

    number: int
    problem: str
    is_for_memory: bool = False
    """There is no room for it."""


class Unload(NamedTuple):
    """The worker does not need it any more."""

    handle: int


class Run(NamedTuple):
    """Rows to run, and where they lie."""

    number: int
    handle: int
    rows: int
    start: int
    places: Places
    room_start: int
    room: int
    """Bytes for the outputs, and where they begin."""
    enqueued: float
    """When the youngest of its callers came."""
    priority: int
    timeout: float | None
    """Longest wait from now on, if all of its callers said one."""


class Cancel(NamedTuple):
    """Nobody waits for the run any more; it is answered nevertheless."""

    number: int


class Done(NamedTuple):
    """The outputs lie in their room, or in memory of their own whose descriptor comes with the message."""

    number: int
    places: Places
    size: int
    """Of the outputs together."""
    started: float
    batch_rows: int
    """Of the run on the device, with the rows of others: told to the first of them, 0 to the rest, so that each run is
    counted once."""
    chosen_rows: int
    """That the next run may have."""


class Failed(NamedTuple):
    """The run, or nothing of it, came to this."""

    number: int
    code: str
    message: str
    retry_after: float | None

    @property
    def error(self) -> GatewayError:
        """For the callers."""
        return _ERRORS.get(self.code, InferenceFailed)(self.message, retry_after=self.retry_after)


Message: TypeAlias = Hello | Welcome | Load | Loaded | Refused | Unload | Run | Cancel | Done | Failed

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind for kind in (Hello, Welcome, Load, Loaded, Refused, Unload, Run, Cancel, Done, Failed)
}
_ERRORS = {
    kind.code: kind
    for kind in (InvalidRequest, InferenceFailed, TooManyRequests, Unavailable, DeadlineExceeded, DeadlineUnreachable)
}


def encode(message: Message) -> bytes:
    """Raises `ValueError` if it is too long to be sent."""
    data = orjson.dumps([type(message).__name__, *message])
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} can be sent")
    return data


def decode(data: bytes | memoryview) -> Message:
    """Raises `ValueError`, `KeyError` or `TypeError` if it is none."""
    kind, *fields = orjson.loads(data)
    return _KINDS[kind](*fields)


def loaded(number: int, handle: int, version: ModelVersion, manifest_bytes: int) -> Loaded:
    """The answer to a `Load`."""
    inputs, outputs = ([list(spec) for spec in specs] for specs in version.signature)
    warm = version.warm
    assert warm is not None  # noqa: S101 -- the engine runs what it loads
    return Loaded(
        number,
        handle,
        inputs,
        outputs,
        version.layout.shares_runs,
        version.layout.padding is not None,
        version.batcher.chosen_rows,
        max(use.runs for use in (warm.core_use, *([warm.spare.core_use] if warm.spare is not None else ()))),
        list(version.stamp),
        version.digest,
        version.memory_bytes,
        manifest_bytes,
    )


def failed(number: int, error: GatewayError) -> Failed:
    """The answer to a `Run`."""
    return Failed(number, error.code, error.message, error.retry_after)


def _specs(documents: list[list[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(*map(_hashable, document)) for document in documents)


def _hashable(value: Any) -> Any:
    """JSON has lists where a signature has tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
