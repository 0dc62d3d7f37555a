"""The batcher keeps to its tuner, teaches it, and waits for more rows only where it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.session import OnnxSession
from gateway.runtime.tuner import BatchPolicy, Tuner
from tests.support.batching import (
    Caller,
    GatedRunner,
    answer_all,
    assert_each_got_its_own,
    batcher,
    matrix,
    run_alone,
    submit_while_busy,
)
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]

HOURS = 10_000.0


def test_every_shape_is_learned_apart(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    tuner = Tuner(BatchPolicy((1, 2, 4)))
    session = sessions("row_sum")
    callers = [Caller(matrix(1, columns)) for columns in (2, 3, 3, 2, 5)]

    async def scenario() -> None:
        target = DynamicBatcher(
            session, executor, Scheduler(1), tuner=tuner, max_queue_rows=100, timeout=30.0, on_batch=answer_all
        )
        for caller in callers:
            target.submit(caller)
        await target.close()

    asyncio.run(scenario())
    assert_each_got_its_own(callers, run_alone(session, callers))
    assert list(tuner.shapes) == [(), ((2,),), ((3,),), ((5,),)]
    assert [round(size.rows) for size in tuner.of(((3,),)).cost.classes] == [2]


def test_requests_that_must_run_alone_are_no_shapes_of_their_own(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    tuner = Tuner(BatchPolicy((8,)))
    callers = [Caller(matrix(rows, 2)) for rows in (1, 2, 3)]

    async def scenario() -> None:
        target = DynamicBatcher(
            sessions("total"),
            executor,
            Scheduler(1),
            tuner=tuner,
            max_queue_rows=100,
            timeout=30.0,
            on_batch=answer_all,
        )
        for caller in callers:
            target.submit(caller)
        await target.close()

    asyncio.run(scenario())
    assert list(tuner.shapes) == [()]


def test_a_run_takes_what_the_tuner_says(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    runner = GatedRunner(sessions("affine"))
    tuner = Tuner(BatchPolicy((2, 4), is_preferred=True))
    callers = [Caller(matrix(1, 3, seed)) for seed in range(8)]

    async def scenario() -> None:
        target = DynamicBatcher(
            runner, executor, Scheduler(1), tuner=tuner, max_queue_rows=100, timeout=30.0, on_batch=answer_all
        )
        await submit_while_busy(runner, target, callers)

    asyncio.run(scenario())
    assert runner.batches == [1, 4, 2, 1]


def test_a_failed_run_teaches_nothing(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> DynamicBatcher:
        target = batcher(sessions("lookup"), executor)
        caller = Caller({"index": matrix(1, 1)["x"].astype("int64").reshape(1) + 99})
        target.submit(caller)
        await target.close()
        assert caller.error
        return target

    assert asyncio.run(scenario())._tuner.last.cost.classes == []


class TestDelay:
    def test_requests_wait_for_others_until_a_run_is_full(
        self, sessions: Sessions, executor: ThreadPoolExecutor
    ) -> None:
        callers = [Caller(matrix(1, 3, seed)) for seed in range(4)]

        async def scenario() -> list[int]:
            runner = GatedRunner(sessions("affine"))
            target = batcher(runner, executor, max_batch_rows=4, max_delay=HOURS)
            for count, caller in enumerate(callers):
                assert runner.batches == []
                target.submit(caller)
                for _ in range(5):
                    await asyncio.sleep(0)
                assert target.queued_rows == (count + 1) % 4
            await wait_until_async(lambda: all(caller.is_answered for caller in callers))
            await target.close()
            return runner.batches

        assert asyncio.run(scenario()) == [4]

    def test_the_wait_ends_with_the_delay(self, sessions: Sessions, executor: ThreadPoolExecutor) -> None:
        async def scenario() -> list[int]:
            runner = GatedRunner(sessions("affine"))
            target = batcher(runner, executor, max_batch_rows=8, max_delay=0.02)
            first, second = Caller(matrix(1, 3)), Caller(matrix(2, 3))
            started = asyncio.get_running_loop().time()
            target.submit(first)
            await asyncio.sleep(0)
            target.submit(second)
            await wait_until_async(lambda: first.is_answered and second.is_answered)
            assert asyncio.get_running_loop().time() - started >= 0.02
            await target.close()
            return runner.batches

        assert asyncio.run(scenario()) == [3]

    def test_closing_ends_it_at_once(self, sessions: Sessions, executor: ThreadPoolExecutor) -> None:
        async def scenario() -> Caller:
            target = batcher(GatedRunner(sessions("affine")), executor, max_delay=HOURS)
            caller = Caller(matrix(1, 3))
            target.submit(caller)
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await target.close()
            return caller

        assert asyncio.run(scenario()).answer

    def test_a_caller_that_left_is_not_waited_with(self, sessions: Sessions, executor: ThreadPoolExecutor) -> None:
        async def scenario() -> None:
            target = batcher(GatedRunner(sessions("affine")), executor, max_delay=HOURS)
            caller = Caller(matrix(1, 3))
            target.submit(caller)
            await asyncio.sleep(0)
            target.discard(caller)
            async with asyncio.timeout(5):
                await target.close()
            assert not caller.is_answered

        asyncio.run(scenario())

    @pytest.mark.parametrize("shapes", [(3, 4), (3, 3)])
    def test_rows_of_any_shape_end_it(
        self, shapes: tuple[int, int], sessions: Sessions, executor: ThreadPoolExecutor
    ) -> None:
        callers = [Caller(matrix(1, columns)) for columns in shapes]

        async def scenario() -> None:
            target = batcher(sessions("row_sum"), executor, max_batch_rows=2, max_delay=HOURS)
            for caller in callers:
                target.submit(caller)
            await wait_until_async(lambda: callers[0].is_answered)
            await target.close()

        asyncio.run(scenario())
        assert all(caller.answer for caller in callers)
