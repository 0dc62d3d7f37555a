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

    def charge(self, cost: float) -> None:
        """It used so much, or less than it was charged for where the cost is negative."""
        self.tag += cost


class FairQueue(Generic[T]):
    """Flows that wait for their turn.

    >>> queue, a, b = FairQueue(), Flow("a"), Flow("b")
    >>> order = ""
    >>> queue.push(a)
    >>> queue.push(b)
    >>> for _ in range(6):
    ...     flow = queue.pop()
    ...     order += flow.owner
    ...     flow.charge(2.0 if flow is a else 1.0)
    ...     queue.push(flow)
    >>> order
    'abbabb'
    """

    __slots__ = ("_arrivals", "_heap", "_now")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Flow[T]]] = []
        self._arrivals = 0
        """Whoever came first is first among equal tags."""
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> T:
        """Who is next, of a queue that is not empty."""
        return self._heap[0][2].owner

    def push(self, flow: Flow[T]) -> None:
        """Let a flow wait that does not wait yet."""
        flow.tag = max(flow.tag, self._now)
        self._arrivals += 1
        heappush(self._heap, (flow.tag, self._arrivals, flow))

    def pop(self) -> Flow[T]:
        """Take out the flow that is next, of a queue that is not empty."""
        self._now, _, flow = heappop(self._heap)
        return flow
