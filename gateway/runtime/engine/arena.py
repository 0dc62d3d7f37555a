"""Memory that a worker shares with the engine process: one nameless file (memfd_create(2)) a connection.

Without a name nothing is left behind when either process is killed, and the size of /dev/shm, which containers keep at
64 MB, does not count. Pages are taken when they are first written. The worker alone hands out blocks; the engine reads
and writes where it is told.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left

ALIGNMENT = 64
"""Of blocks and of each tensor in one: a cache line, and more than any datatype needs."""
KEPT_BYTES = 16 * 2**20
"""What an arena that is empty keeps of the memory that a spike took."""


def aligned(size: int) -> int:
    """The size with which the next tensor begins at a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def create_memory(size: int) -> tuple[int, mmap.mmap]:
    """A file descriptor to send, which the caller closes, and the memory as this process sees it."""
    descriptor = os.memfd_create("gateway", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def attach_memory(descriptor: int, size: int) -> mmap.mmap:
    """The memory behind a descriptor that came, which is closed. Raises `ValueError` or `OSError` if it is smaller."""
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


class Arena:
    """Hands out blocks of `size` bytes of memory, first fit, so that a quiet worker touches few pages.

    >>> arena = Arena(256)
    >>> [arena.take(100), arena.take(1), arena.take(100)]
    [0, 128, None]
    >>> arena.give_back(0)
    >>> [arena.take(64), arena.take(64), arena.take(64)]
    [0, 64, 192]
    """

    def __init__(self, size: int) -> None:
        self.size = size - size % ALIGNMENT
        self.descriptor, self.memory = create_memory(size)
        """For the other side; whoever sends the descriptor closes it."""
        self._free = [(0, self.size)]
        """Start and end of what is free, ascending; neighbours are one."""
        self._taken: dict[int, int] = {}
        """End of each block by its start."""
        self._highest = 0

    def take(self, size: int) -> int | None:
        """Where a block of at least `size` bytes begins; None if there is no such gap now."""
        size = max(ALIGNMENT, aligned(size))
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                if end - start == size:
                    del self._free[index]
                else:
                    self._free[index] = (start + size, end)
                self._taken[start] = start + size
                self._highest = max(self._highest, start + size)
                return start
        return None

    def give_back(self, start: int) -> None:
        """The block is free again. The last one gives the system back what a spike took of it."""
        end = self._taken.pop(start)
        index = bisect_left(self._free, (start, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))
        if not self._taken and self._highest > KEPT_BYTES:
            self.memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES, self._highest - KEPT_BYTES)
            self._highest = KEPT_BYTES
