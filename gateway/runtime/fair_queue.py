"""Whose turn it is, among those that share one resource: start-time fair queueing.

Each has a tag, the virtual time at which it has used up what it was given. Whoever waits with the lowest tag is next,
and what its turn costs is added to its tag; virtual time is the tag of whoever was served last. So those that always
wait get the same time each, however many turns that takes, and one that was away comes back at the present virtual
time: it is next, and has saved up nothing. A turn costs O(log n), whatever waits behind it.

P. Goyal, H. Vin, H. Cheng: Start-time Fair Queuing, SIGCOMM 1996.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class Flow(Generic[T]):
    """One of those that take turns."""

    __slots__ = ("owner", "tag")

    def __init__(self, owner: T) -> None:
        self.owner = owner
        self.tag = 0.0
        """What it uses is added here."""


class FairQueue(Generic[T]):
    """Flows that wait for their turn.

    >>> queue, flows, order = FairQueue(), {name: Flow(name) for name in "ab"}, ""
    >>> for flow in flows.values():
    ...     queue.push(flow)
    >>> for _ in range(6):
    ...     name = queue.pop()
    ...     order += name
    ...     flows[name].tag += 2.0 if name == "a" else 1.0
    ...     queue.push(flows[name])
    >>> order
    'abbabb'
    """

    __slots__ = ("_arrivals", "_now", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[float, int, Flow[T]]] = []
        """A heap, to be looked at only: tag, place among equal tags, and whose they are."""
        self._arrivals = 0
        self._now = 0.0

    def push(self, flow: Flow[T]) -> None:
        """Let a flow wait that does not wait yet."""
        flow.tag = max(flow.tag, self._now)
        self._arrivals += 1
        heappush(self.waiting, (flow.tag, self._arrivals, flow))

    def pop(self) -> T:
        """Take out who is next, of a queue in which somebody waits."""
        self._now, _, flow = heappop(self.waiting)
        return flow.owner
