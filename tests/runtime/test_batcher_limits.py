"""The queue is bounded, waits end, callers may leave, and closing answers what was admitted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gateway.errors import DeadlineExceeded, TooManyRequests, Unavailable
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from gateway.types import Array, Signature, TensorSpec
from tests.support.batching import (
    Caller,
    GatedRunner,
    assert_each_got_its_own,
    batcher,
    matrix,
    run_alone,
    submit_while_busy,
)
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]


def test_a_full_queue_refuses_before_any_work_and_says_when_to_come_back(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    first, fitting, late = (Caller(matrix(rows, 3)) for rows in (1, 3, 2))

    async def scenario() -> GatedRunner:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, max_queue_rows=4)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            target.submit(fitting)
            with pytest.raises(TooManyRequests) as caught:
                target.submit(late)
            assert caught.value.retry_after is not None
            assert target.queued_rows == 3
        await target.close()
        return runner

    runner = asyncio.run(scenario())
    assert sum(runner.batches) == 4
    assert not late.is_answered
    assert_each_got_its_own([first, fitting], run_alone(sessions("affine"), [first, fitting]))


def test_the_order_in_which_callers_name_their_inputs_does_not_matter(executor: ThreadPoolExecutor) -> None:
    class Joined:
        signature = Signature(
            (TensorSpec("a", "FP32", (-1, -1)), TensorSpec("b", "FP32", (-1, -1))), (TensorSpec("y", "FP32", (-1,)),)
        )

        def run(self, inputs: dict[str, Array]) -> list[Array]:
            return [inputs["a"].sum(axis=1) - inputs["b"].sum(axis=1)]

    three, five = np.ones((1, 3), np.float32), np.ones((1, 5), np.float32)

    async def scenario() -> list[Caller]:
        target = batcher(Joined(), executor)
        callers = [Caller({"a": three, "b": five}), Caller({"b": three, "a": five}), Caller({"b": five, "a": three})]
        for caller in callers:
            target.submit(caller)
        await target.close()
        return callers

    assert [caller.answer[0].tolist() for caller in asyncio.run(scenario())] == [[-2.0], [2.0], [-2.0]]


def test_callers_that_left_make_room_in_a_full_queue_at_once(executor: ThreadPoolExecutor, sessions: Sessions) -> None:
    async def scenario() -> tuple[list[Caller], list[int]]:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, max_queue_rows=6)
        leaving, staying = [Caller(matrix(2, 3)) for _ in range(3)], [Caller(matrix(3, 3)) for _ in range(2)]
        depths = []
        with runner.busy():
            target.submit(Caller(matrix(1, 3)))
            await wait_until_async(lambda: len(runner.batches) == 1)
            for caller in leaving:
                target.submit(caller)
            depths.append(target.queued_rows)
            for caller in leaving:
                target.discard(caller)
            depths.append(target.queued_rows)
            for caller in staying:
                target.submit(caller)
        await target.close()
        return [*leaving, *staying], depths

    callers, depths = asyncio.run(scenario())
    assert depths == [6, 0]
    assert [caller.is_answered for caller in callers] == [False] * 3 + [True] * 2


def test_the_time_to_come_back_grows_with_the_queue(executor: ThreadPoolExecutor, sessions: Sessions) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    async def scenario() -> list[float]:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, max_queue_rows=6, max_batch_rows=1, clock=clock)
        first = Caller(matrix(1, 3))
        target.submit(first)
        await wait_until_async(lambda: first.is_answered)
        waits = []
        with runner.busy():
            target.submit(Caller(matrix(1, 3)))
            await wait_until_async(lambda: len(runner.batches) == 2)
            for _ in range(3):
                target.submit(Caller(matrix(2, 3)))
                with pytest.raises(TooManyRequests) as caught:
                    target.submit(Caller(matrix(6, 3)))
                assert caught.value.retry_after is not None
                waits.append(caught.value.retry_after)
        await target.close()
        return waits

    one, two, three = asyncio.run(scenario())
    assert 0 < one < two < three
    assert three == pytest.approx(3 * one)


def test_who_waited_too_long_is_told_so_and_not_run(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    now = 100.0
    first, late, fresh = (Caller(matrix(1, 3, seed)) for seed in range(3))

    async def scenario() -> GatedRunner:
        nonlocal now
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, timeout=5.0, clock=lambda: now)
        with runner.busy():
            target.submit(first)
            await wait_until_async(lambda: runner.batches)
            target.submit(late)
            now = 105.0
            target.submit(fresh)
        await target.close()
        return runner

    runner = asyncio.run(scenario())
    assert isinstance(late.error, DeadlineExceeded)
    assert late.error.retry_after is not None
    assert_each_got_its_own([first, fresh], run_alone(sessions("affine"), [first, fresh]))
    assert runner.batches == [1, 1]


def test_closing_answers_what_was_admitted_and_refuses_the_rest(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    callers = [Caller(matrix(2, 3, seed)) for seed in range(5)]

    async def scenario() -> None:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, max_batch_rows=2)
        with runner.busy():
            for caller in callers:
                target.submit(caller)
            closing = asyncio.create_task(target.close())
            await wait_until_async(lambda: runner.batches)
            with pytest.raises(Unavailable):
                target.submit(Caller(matrix(1, 3)))
            assert not closing.done()
        await closing
        assert all(caller.is_answered for caller in callers)
        with pytest.raises(Unavailable):
            target.submit(Caller(matrix(1, 3)))

    asyncio.run(scenario())
    assert_each_got_its_own(callers, run_alone(sessions("affine"), callers))


def test_closing_an_idle_batcher_and_closing_twice_return(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> None:
        idle = batcher(GatedRunner(sessions("affine")), executor)
        async with asyncio.timeout(5):
            await idle.close()
            await idle.close()
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor)
        target.submit(Caller(matrix(1, 3)))
        async with asyncio.timeout(5):
            await asyncio.gather(target.close(), target.close())

    asyncio.run(scenario())


def test_closing_with_nothing_but_callers_that_left_returns(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> None:
        target = batcher(GatedRunner(sessions("affine")), executor)
        caller = Caller(matrix(1, 3))
        target.submit(caller)
        caller.cancel()
        async with asyncio.timeout(5):
            await target.close()
        assert not caller.is_answered
        assert target.queued_rows == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("model", ["total", "positions"])
def test_a_model_without_one_output_row_per_input_row_is_found_out_and_answered_as_if_alone(
    model: str, sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    session = sessions(model)
    assert session.signature.is_batchable
    waves = [[Caller(matrix(rows, 2, rows + wave)) for rows in (1, 3, 2, 1)] for wave in range(3)]

    async def scenario() -> GatedRunner:
        runner = GatedRunner(session)
        target = batcher(runner, executor)
        for wave in waves:
            for caller in wave:
                target.submit(caller)
            await wait_until_async(lambda: all(caller.is_answered for caller in wave))  # noqa: B023 -- waited for here
        await target.close()
        return runner

    runner = asyncio.run(scenario())
    for wave in waves:
        assert_each_got_its_own(wave, run_alone(session, wave))
    # Found out once; from then on nobody is run twice.
    assert runner.batches[-8:] == [1, 3, 2, 1] * 2


def test_a_model_without_a_row_axis_is_run_alone(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    callers = [Caller(matrix(2, 2, seed), rows=1) for seed in range(4)]

    async def scenario() -> list[int]:
        runner = GatedRunner(sessions("fixed_rows"))
        await submit_while_busy(runner, batcher(runner, executor), callers)
        return runner.batches

    assert asyncio.run(scenario()) == [2, 2, 2, 2]
    assert_each_got_its_own(callers, run_alone(sessions("fixed_rows"), callers))


class LoopWithoutTimers(asyncio.SelectorEventLoop):
    """Fails the test if anybody sets a timer."""

    def call_at(self, when: float, *args: object, **options: object) -> asyncio.TimerHandle:
        raise AssertionError("a timer was set")


def test_an_idle_batcher_runs_at_once_and_without_a_timer(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> None:
        target = batcher(GatedRunner(sessions("affine")), executor)
        for seed in range(3):
            caller = Caller(matrix(1, 3, seed))
            target.submit(caller)
            await asyncio.sleep(0)
            assert target.queued_rows == 0, "the run had not begun at the next turn of the loop"
            while not caller.is_answered:  # noqa: ASYNC110 -- each turn of the loop counts
                await asyncio.sleep(0)
        await target.close()

    with asyncio.Runner(loop_factory=LoopWithoutTimers) as runner:
        runner.run(scenario())


def test_a_batch_tells_when_it_was_queued_started_and_finished(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    batches: list[Batch] = []

    async def scenario() -> None:
        target = batcher(GatedRunner(sessions("affine")), executor, on_batch=batches.append)
        target.submit(Caller(matrix(2, 3)))
        target.submit(Caller(matrix(3, 3)))
        await target.close()

    asyncio.run(scenario())
    (batch,) = batches
    assert batch.rows == 5
    assert all(work.enqueued <= batch.started <= batch.finished for work in batch.works)
    assert [(work.start, work.rows) for work in batch.works] == [(0, 2), (2, 3)]
