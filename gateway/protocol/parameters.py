"""What the parameters of a request mean (protocol sections "Parameters" and Triton's "Schedule Policy Extension"), and
the one header that says the same for every protocol.

Names that mean nothing to the gateway are the client's own affair and are accepted, as the protocol wants it. Names
that would ask for what the gateway does not do are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.errors import InvalidRequest, Unsupported, shown

RESERVED_PREFIX = "triton_"
SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
SHARED_MEMORY_REGION = "shared_memory_region"
NO_SHARED_MEMORY = "shared memory is not supported; send tensors in the request"

PRIORITY_LEVELS = 3
"""1 is taken first."""
DEFAULT_PRIORITY = PRIORITY_LEVELS
"""Of requests that name none, or 0. The last level, so that they queue at the end without being compared."""
MICROSECONDS = 1_000_000

TIMEOUT_HEADER = "request-timeout"
"""As the setting `request_timeout`, and in seconds as `Retry-After`."""
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?\Z", re.ASCII)


class Schedule(NamedTuple):
    """How a request that says so is queued."""

    priority: int = DEFAULT_PRIORITY
    timeout: float | None = None
    """Longest wait in the queue in seconds; None leaves it to the gateway. Who would be later is refused at once."""
    patience: float | None = None
    """Seconds after which the caller leaves by itself, as over gRPC: who would be later is refused at once."""

    def within(self, other: Schedule | None) -> Schedule:
        """As it is, but with the shorter of both timeouts, and the other's patience."""
        if other is None:
            return self
        timeouts = [timeout for timeout in (self.timeout, other.timeout) if timeout is not None]
        return self._replace(timeout=min(timeouts, default=None), patience=other.patience)


def check_values(parameters: Mapping[str, Any], path: str) -> None:
    """Parameters of a request or of a tensor, found under `path`, hold strings, numbers and bools.

    Raises `InvalidRequest` naming the one that does not, `Unsupported` for a tensor in shared memory.
    """
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            raise InvalidRequest(f"{path}.{name}: expected a string, a number or a bool, got {shown(value)}")
    if SHARED_MEMORY_REGION in parameters:
        raise Unsupported(f"{path}.{SHARED_MEMORY_REGION}: {NO_SHARED_MEMORY}")


def schedule_of(parameters: Mapping[str, Any]) -> Schedule | None:
    """What the parameters of a request ask of the queue; None for nothing.

    Raises `InvalidRequest` for reserved names, for sequences, and for a priority or timeout out of range.
    """
    for name in parameters:
        if name.startswith(RESERVED_PREFIX):
            raise InvalidRequest(f"parameters.{name}: names that start with {RESERVED_PREFIX!r} are reserved")
    for name in SEQUENCE_PARAMETERS:
        if parameters.get(name):
            raise InvalidRequest(f"parameters.{name}: stateful sequences are not supported; leave it out")
    priority = _whole_number(parameters, "priority", PRIORITY_LEVELS) or DEFAULT_PRIORITY
    microseconds = _whole_number(parameters, "timeout", None)
    if priority == DEFAULT_PRIORITY and not microseconds:
        return None
    return Schedule(priority, microseconds / MICROSECONDS if microseconds else None)


def schedule_of_header(value: str) -> Schedule:
    """What a `Request-Timeout` header asks of the queue. Raises `InvalidRequest` unless it is a number of seconds."""
    if not _SECONDS.match(value) or not float(value):
        raise InvalidRequest(f"header Request-Timeout: expected seconds above 0, such as 0.25, got {shown(value)}")
    return Schedule(timeout=float(value))


def _whole_number(parameters: Mapping[str, Any], name: str, highest: int | None) -> int:
    value = parameters.get(name, 0)
    # A bool is an int to Python, not to whoever reads the document.
    if type(value) is not int or value < 0 or (highest is not None and value > highest):
        limits = "from 0 on, in microseconds" if highest is None else f"from 0 (the default) to {highest}, 1 is first"
        raise InvalidRequest(f"parameters.{name}: expected a whole number {limits}, got {shown(value)}")
    return value
