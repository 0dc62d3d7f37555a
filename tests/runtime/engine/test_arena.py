from __future__ import annotations

import doctest
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.engine import arena as module
from gateway.runtime.engine.arena import ALIGNMENT, KEPT_BYTES, Arena

SIZE = 64 * ALIGNMENT


def test_the_examples_in_the_docstrings_give_the_stated_numbers() -> None:
    failures, attempts = doctest.testmod(module)
    assert attempts
    assert not failures


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, SIZE // 3)), max_size=60))
def test_blocks_never_overlap_and_all_that_is_given_back_can_be_taken_again(steps: list[tuple[bool, int]]) -> None:
    arena = Arena(SIZE)
    os.close(arena.descriptor)
    taken: dict[int, int] = {}
    for is_taking, number in steps:
        if is_taking:
            start = arena.take(number)
            if start is None:
                assert sum(map(block, taken.values())) + number + ALIGNMENT * len(taken) > SIZE // 3
                continue
            assert start % ALIGNMENT == 0
            assert start + number <= SIZE
            assert all(start + number <= other or other + size <= start for other, size in taken.items())
            taken[start] = number
        elif taken:
            start = sorted(taken)[number % len(taken)]
            del taken[start]
            arena.give_back(start)
    for start in taken:
        arena.give_back(start)
    assert arena.take(SIZE) == 0


def block(size: int) -> int:
    """What a block takes of the arena."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


def test_a_spike_is_given_back_to_the_system_when_the_last_block_is() -> None:
    arena = Arena(4 * KEPT_BYTES)
    try:
        blocks = [arena.take(KEPT_BYTES), arena.take(2 * KEPT_BYTES)]
        assert blocks == [0, KEPT_BYTES]
        arena.memory[: 3 * KEPT_BYTES] = b"x" * (3 * KEPT_BYTES)
        assert file_bytes(arena) >= 3 * KEPT_BYTES
        arena.give_back(KEPT_BYTES)
        assert file_bytes(arena) >= 3 * KEPT_BYTES
        arena.give_back(0)
        assert file_bytes(arena) <= KEPT_BYTES
    finally:
        os.close(arena.descriptor)


def file_bytes(arena: Arena) -> int:
    """Pages that the file really has."""
    return Path(f"/proc/self/fd/{arena.descriptor}").stat().st_blocks * 512
