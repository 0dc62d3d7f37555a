"""When ONNX Runtime should give back the memory that a spike took.

Its arena keeps what the largest run so far needed, for ever: one request with a thousand long rows, and the process
stays that large. A run can be told to return the unused regions when it ends (run option
`memory.enable_memory_arena_shrinkage`).
"""

from __future__ import annotations

SPIKE = 4.0
"""A run with so many times the bytes of the usual one is a spike."""
LEARNED = 0.05
"""Weight of one run in what is usual: a size that comes again and again is no spike for long."""


class SpikeWatch:
    """Looks at the size of each run, in bytes of input, before it begins.

    >>> watch = SpikeWatch()
    >>> watch.warmed(100)
    >>> [watch.is_due(size) for size in (1, 100, 399, 1000, 100)]
    [False, False, False, True, False]

    Sizes that keep coming become usual; when they stop coming, what they took is given back.

    >>> due = [watch.is_due(1000) for _ in range(100)]
    >>> due[0], due[-1]
    (True, False)
    >>> due = [watch.is_due(100) for _ in range(100)]
    >>> due.count(True), due[-1]
    (1, False)
    """

    __slots__ = ("_floor", "_largest", "_usual")

    def __init__(self) -> None:
        self._floor = 0
        self._usual = 0.0
        self._largest = 0

    def warmed(self, size: int) -> None:
        """Runs up to this size were made before the first request, and are never a spike."""
        self._floor = max(self._floor, size)

    def is_due(self, size: int) -> bool:
        """Whether the run of `size` should return unused regions when it ends."""
        usual = max(self._usual, self._floor)
        self._largest = max(self._largest, size)
        self._usual += LEARNED * (size - self._usual)
        if self._largest <= SPIKE * usual:
            return False
        self._largest = 0
        return True
