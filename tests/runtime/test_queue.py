"""Who is admitted and who would be too late, at rates that a test can name."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import DeadlineUnreachable, TooManyRequests
from gateway.protocol.parameters import Schedule
from gateway.runtime.queue import WorkQueue
from tests.support.batching import Caller, matrix


def caller(rows: int = 1, schedule: Schedule | None = None) -> Caller:
    made = Caller(matrix(rows, 1))
    made.schedule = schedule
    return made


def queue(timeout: float = 10.0, rate: float = math.inf, max_rows: int = 1_000) -> WorkQueue:
    made = WorkQueue(max_rows=max_rows, timeout=timeout, clock=lambda: 0.0)
    made.expect(rate)
    return made


def test_while_nothing_is_known_everybody_is_admitted() -> None:
    target = queue(timeout=1e-6)
    for _ in range(1_000):
        target.put(caller())
    assert target.rows == 1_000


def test_who_would_be_later_than_everybody_may_is_refused_and_told_when_to_come_back() -> None:
    target = queue(timeout=10.0, rate=2.0)
    for _ in range(20):
        target.put(caller())
    late = caller()
    with pytest.raises(DeadlineUnreachable, match=r"after about 10\.5 s and has 10 s; nothing was done") as caught:
        target.put(late)
    assert caught.value.retry_after == pytest.approx(0.5)
    assert (target.rows, late.is_queued) == (20, False)
    # As soon as it goes faster there is room.
    target.expect(4.0)
    target.put(late)


def test_a_full_queue_is_another_matter_than_a_late_answer() -> None:
    target = queue(rate=1_000.0, max_rows=4)
    target.put(caller(4))
    with pytest.raises(TooManyRequests):
        target.put(caller())


def test_whoever_finds_the_queue_empty_is_admitted_however_slow_it_is_said_to_be() -> None:
    target = queue(timeout=1.0, rate=1e-6)
    target.put(caller(schedule=Schedule(patience=0.5)))
    with pytest.raises(DeadlineUnreachable):
        target.put(caller())


@pytest.mark.parametrize("of", ["timeout", "patience"])
def test_an_own_deadline_shortens_everybodys_and_never_lengthens_it(of: str) -> None:
    def within(seconds: float) -> Caller:
        return caller(schedule=Schedule(timeout=seconds) if of == "timeout" else Schedule(patience=seconds))

    async def scenario() -> None:
        target = queue(timeout=10.0, rate=2.0)
        for _ in range(8):
            target.put(caller())
        with pytest.raises(DeadlineUnreachable, match=r"about 4\.5 s and has 4 s"):
            target.put(within(4.0))
        target.put(within(5.0))
        for _ in range(11):
            target.put(caller())
        with pytest.raises(DeadlineUnreachable, match=r"about 10\.5 s and has 10 s"):
            target.put(within(1e9))
        for timer in target.timers.values():
            timer.cancel()

    asyncio.run(scenario())


def test_only_those_that_go_before_count_for_a_higher_priority() -> None:
    target = queue(timeout=10.0, rate=1.0)
    for _ in range(9):
        target.put(caller())
    for _ in range(3):
        target.put(caller(3, Schedule(priority=1)))
    # Of the 18 rows, 9 go before it.
    with pytest.raises(DeadlineUnreachable, match="about 11 s"):
        target.put(caller(2, Schedule(priority=1)))
    target.put(caller(1, Schedule(priority=1)))
    with pytest.raises(DeadlineUnreachable, match="about 20 s"):
        target.put(caller())


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    rate=st.floats(0.1, 1e4),
    timeout=st.floats(0.01, 100.0),
)
def test_at_a_steady_rate_nobody_but_the_first_is_admitted_in_vain(
    rows: list[int], rate: float, timeout: float
) -> None:
    target = queue(timeout=timeout, rate=rate)
    for number, count in enumerate(rows):
        try:
            target.put(caller(count))
        except DeadlineUnreachable:
            assert (target.rows + count) / rate > timeout
        else:
            assert number == 0 or target.rows / rate <= timeout * (1 + 1e-9)
