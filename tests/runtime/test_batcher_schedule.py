"""Requests that say how they want to be queued: priorities and timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import DeadlineExceeded
from gateway.protocol.parameters import DEFAULT_PRIORITY, PRIORITY_LEVELS, Schedule
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from tests.support.batching import Caller, GatedRunner, answer_all, batcher, matrix, submit_while_busy
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]


def caller(schedule: Schedule | None = None, columns: int = 3) -> Caller:
    made = Caller(matrix(1, columns))
    made.schedule = schedule
    return made


def order_of_runs(sessions: Sessions, executor: ThreadPoolExecutor, schedules: list[Schedule | None]) -> list[int]:
    """In which order works that queue up behind a run are taken, by their place in `schedules`."""
    callers = [caller(schedule) for schedule in schedules]
    order: list[int] = []

    def on_batch(batch: Batch) -> None:
        order.extend(callers.index(work) for work in batch.works if isinstance(work, Caller) and work in callers)
        answer_all(batch)

    async def scenario() -> None:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, max_batch_rows=1, on_batch=on_batch)
        await submit_while_busy(runner, target, [caller(), *callers])

    asyncio.run(scenario())
    return order


def test_a_higher_priority_is_taken_first(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    schedules = [None, Schedule(2), None, Schedule(1), Schedule(DEFAULT_PRIORITY), Schedule(1), Schedule(2)]
    assert order_of_runs(sessions, executor, schedules) == [3, 5, 1, 6, 0, 2, 4]


@settings(max_examples=25, deadline=None)
@given(levels=st.lists(st.one_of(st.none(), st.integers(1, PRIORITY_LEVELS)), max_size=8))
def test_inside_a_level_who_came_first_is_first(
    sessions: Sessions, executor: ThreadPoolExecutor, levels: list[int | None]
) -> None:
    order = order_of_runs(sessions, executor, [None if level is None else Schedule(level) for level in levels])
    assert order == sorted(range(len(levels)), key=lambda place: levels[place] or DEFAULT_PRIORITY)


def test_priorities_do_not_mix_shapes_nor_split_a_batch(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    narrow = [caller(), caller(Schedule(1)), caller()]
    wide = [caller(Schedule(1), columns=5)]

    async def scenario() -> GatedRunner:
        runner = GatedRunner(sessions("affine_of_any_width"))
        await submit_while_busy(runner, batcher(runner, executor), [caller(), *narrow, *wide])
        return runner

    assert asyncio.run(scenario()).batches == [1, 3, 1]
    assert all(work.answer for work in narrow + wide)


def test_a_timeout_ends_the_wait_while_the_runner_is_still_busy(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    first, hasty, urgent, patient = caller(), caller(Schedule(timeout=0.01)), caller(Schedule(1, 0.02)), caller()

    async def scenario() -> GatedRunner:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            for work in (hasty, urgent, patient):
                target.submit(work)
            await wait_until_async(lambda: hasty.is_answered and urgent.is_answered)
            assert not first.is_answered
            assert target.queued_rows == 1
        await target.close()
        assert target.queue.timers == {}
        return runner

    assert asyncio.run(scenario()).batches == [1, 1]
    for work, seconds in ((hasty, "0.01"), (urgent, "0.02")):
        assert isinstance(work.error, DeadlineExceeded)
        assert work.error.message == f"waited {seconds} s in the queue"
    assert patient.answer


def test_a_timeout_that_has_passed_when_the_turn_comes_is_told_though_no_timer_fired(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    now = 100.0
    first, late = caller(), caller(Schedule(timeout=60.0))

    async def scenario() -> None:
        nonlocal now
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, timeout=300.0, clock=lambda: now)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            target.submit(late)
            now = 160.0
        await target.close()

    asyncio.run(scenario())
    assert isinstance(late.error, DeadlineExceeded)


@pytest.mark.parametrize("own", [5.0, 6.0, 1e24])
def test_nobody_may_wait_longer_than_everybody(sessions: Sessions, executor: ThreadPoolExecutor, own: float) -> None:
    now = 100.0
    first, late = caller(), caller(Schedule(1, own))

    async def scenario() -> None:
        nonlocal now
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, timeout=5.0, clock=lambda: now)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            target.submit(late)
            assert target.queue.timers == {}
            now = 105.0
        await target.close()

    asyncio.run(scenario())
    assert late.error.message == "waited 5 s in the queue"


def test_whoever_is_taken_or_leaves_in_time_leaves_no_timer(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    first, served, gone = caller(), caller(Schedule(timeout=20.0)), caller(Schedule(timeout=20.0))

    async def scenario() -> None:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            target.submit(served)
            target.submit(gone)
            timers = list(target.queue.timers.values())
            target.discard(gone)
            assert target.queued_rows == 1
        await target.close()
        assert target.queue.timers == {}
        assert len(timers) == 2
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(scenario())
    assert served.answer
    assert not gone.is_answered
