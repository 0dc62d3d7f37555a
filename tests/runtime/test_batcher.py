"""The rule of this file: whatever company a caller's rows had, the caller gets what it would have got alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InferenceFailed, InvalidRequest
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from gateway.types import Array, Signature, TensorSpec
from tests.support.batching import (
    Caller,
    GatedRunner,
    answer_all,
    assert_each_got_its_own,
    batcher,
    floats,
    matrix,
    run_alone,
    submit_while_busy,
)
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=14),
    max_batch_rows=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("model", ["row_sum", "affine_of_any_width"])
def test_batched_is_the_same_as_alone_for_any_mix_of_rows_and_shapes(
    model: str,
    shapes: list[tuple[int, int]],
    max_batch_rows: int,
    seed: int,
    sessions: Sessions,
    executor: ThreadPoolExecutor,
) -> None:
    session = sessions(model)
    callers = [Caller(matrix(rows, columns, seed + i)) for i, (rows, columns) in enumerate(shapes)]

    async def scenario() -> GatedRunner:
        runner = GatedRunner(session)
        target = batcher(runner, executor, max_batch_rows=max_batch_rows)
        await submit_while_busy(runner, target, callers)
        assert target.queued_rows == 0
        return runner

    runner = asyncio.run(scenario())
    assert_each_got_its_own(callers, run_alone(session, callers))
    # No run takes more rows than it may, unless one caller alone brings more.
    largest_caller = max(rows for rows, _ in shapes)
    assert max(runner.batches) <= max(max_batch_rows, largest_caller)
    assert sum(runner.batches) == sum(rows for rows, _ in shapes)


@settings(max_examples=40, deadline=None)
@given(
    waves=st.lists(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=6), min_size=1, max_size=5),
    max_batch_rows=st.integers(1, 6),
)
def test_short_runs_on_the_loop_itself_answer_the_same(
    waves: list[list[tuple[int, int]]], max_batch_rows: int, sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    session = sessions("row_sum")
    callers = [[Caller(matrix(*shape, seed)) for seed, shape in enumerate(wave)] for wave in waves]

    async def scenario() -> None:
        target = batcher(session, executor, max_batch_rows=max_batch_rows, on_threads=False)
        for wave in callers:
            for caller in wave:
                target.submit(caller)
            # Some waves meet the one before them in the queue.
            await asyncio.sleep(0)
        await target.close()
        assert target.queued_rows == 0

    asyncio.run(scenario())
    for wave in callers:
        assert_each_got_its_own(wave, run_alone(session, wave))


def test_a_failure_on_the_loop_itself_reaches_that_caller_alone(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    indices = [0, 1, 99, 2, 99, 3]
    waves = [[Caller({"index": np.array([index], np.int64)}) for index in indices] for _ in range(5)]

    async def scenario() -> None:
        target = batcher(sessions("lookup"), executor, on_threads=False)
        for wave in waves:
            for caller in wave:
                target.submit(caller)
            await wait_until_async(lambda: all(caller.is_answered for caller in wave))  # noqa: B023 -- waited for here
        await target.close()

    asyncio.run(scenario())
    for wave in waves:
        for index, caller in zip(indices, wave, strict=True):
            assert isinstance(caller.error, InvalidRequest) if index == 99 else caller.answer


class SometimesSlow:
    """Takes as many milliseconds of work as its input says."""

    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))

    def __init__(self) -> None:
        self.threads: list[int] = []

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        self.threads.append(threading.get_ident())
        until = time.thread_time() + float(inputs["x"].sum()) / 1e3
        while time.thread_time() < until:
            pass
        return [inputs["x"]]


def test_runs_go_side_by_side_up_to_the_limit_and_each_caller_gets_its_own(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    session = sessions("row_sum")
    runner = GatedRunner(session)
    callers = [Caller(matrix(1, 3, seed)) for seed in range(7)]

    async def scenario() -> None:
        target = batcher(runner, executor, max_batch_rows=2, max_runs=2)
        with runner.busy():
            for caller in callers:
                target.submit(caller)
            await wait_until_async(lambda: len(runner.batches) == 2)
            assert target.queued_rows == 3
        await target.close()

    asyncio.run(scenario())
    assert sum(runner.batches) == len(callers)
    assert_each_got_its_own(callers, run_alone(session, callers))


def threads_of(executor: ThreadPoolExecutor, milliseconds: list[float]) -> list[bool]:
    """Whether each run was on the loop, of a model that takes so long one run after the other."""
    runner = SometimesSlow()

    async def scenario() -> None:
        target = batcher(runner, executor, on_threads=False)
        for wanted in milliseconds:
            caller = Caller(floats(wanted))
            target.submit(caller)
            await wait_until_async(lambda: caller.is_answered)  # noqa: B023 -- waited for here
        await target.close()

    asyncio.run(scenario())
    return [thread == threading.get_ident() for thread in runner.threads]


def test_a_model_that_is_slow_again_and_again_leaves_the_loop_until_that_has_passed(
    executor: ThreadPoolExecutor,
) -> None:
    slow_spell = [0.0, 0.0, 0.0, 40.0] * 4
    on_loop = threads_of(executor, [*[0.0] * 20, *slow_spell, *[0.0] * 400])
    assert on_loop[10:20] == [True] * 10
    assert not on_loop[36]
    assert on_loop[-1]


def test_a_single_hiccup_does_not_move_a_model_off_the_loop(executor: ThreadPoolExecutor) -> None:
    on_loop = threads_of(executor, [*[0.0] * 60, 40.0, *[0.0] * 10])
    assert on_loop[-10:] == [True] * 10


@settings(max_examples=30, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=2, max_size=12))
def test_callers_that_left_change_nothing_for_the_others(
    plan: list[tuple[int, bool]], sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    session = sessions("row_sum")
    callers = [Caller(matrix(rows, 2, index)) for index, (rows, _) in enumerate(plan)]
    leavers = [caller for caller, (_, leaves) in zip(callers[1:], plan[1:], strict=True) if leaves]

    async def scenario() -> GatedRunner:
        runner = GatedRunner(session)
        target = batcher(runner, executor)
        with runner.busy():
            target.submit(callers[0])
            await wait_until_async(lambda: runner.batches)
            for caller in callers[1:]:
                target.submit(caller)
            for caller in leavers:
                caller.cancel()
        await target.close()
        assert target.queued_rows == 0
        return runner

    runner = asyncio.run(scenario())
    stayers = [caller for caller in callers if caller not in leavers]
    assert_each_got_its_own(stayers, run_alone(session, stayers))
    assert not any(caller.is_answered for caller in leavers)
    assert sum(runner.batches) == sum(caller.rows for caller in stayers)


def test_requests_that_wait_share_a_run(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    callers = [Caller(matrix(1, 3, seed)) for seed in range(9)]

    async def scenario() -> list[int]:
        runner = GatedRunner(sessions("affine"))
        await submit_while_busy(runner, batcher(runner, executor, max_batch_rows=4), callers)
        return runner.batches

    assert asyncio.run(scenario()) == [1, 4, 4]
    assert_each_got_its_own(callers, run_alone(sessions("affine"), callers))


def test_a_request_of_another_shape_neither_joins_nor_flushes_a_batch(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    callers = [Caller(matrix(1, columns, seed)) for seed, columns in enumerate([2, 2, 3, 2, 3, 2])]

    async def scenario() -> list[int]:
        runner = GatedRunner(sessions("row_sum"))
        await submit_while_busy(runner, batcher(runner, executor), callers)
        return runner.batches

    # The first alone, then all others of two columns, whose head waited longest, then those of three.
    assert asyncio.run(scenario()) == [1, 3, 2]


def test_the_bucket_that_waited_longest_is_next(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    finished: list[int] = []
    callers = [Caller(matrix(1, columns)) for columns in [2, 5, 2, 4, 2]]

    def on_batch(batch: Batch) -> None:
        finished.append(batch.works[0].inputs["x"].shape[1])
        answer_all(batch)

    async def scenario() -> None:
        runner = GatedRunner(sessions("row_sum"))
        await submit_while_busy(runner, batcher(runner, executor, on_batch=on_batch), callers)

    asyncio.run(scenario())
    assert finished == [2, 5, 2, 4]


def test_one_request_may_be_larger_than_a_batch_and_runs_by_itself(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    callers = [Caller(matrix(rows, 3, rows)) for rows in [1, 2, 20, 2]]

    async def scenario() -> list[int]:
        runner = GatedRunner(sessions("affine"))
        await submit_while_busy(runner, batcher(runner, executor, max_batch_rows=4), callers)
        return runner.batches

    assert asyncio.run(scenario()) == [1, 2, 20, 2]
    assert_each_got_its_own(callers, run_alone(sessions("affine"), callers))


def test_one_callers_bad_values_fail_that_caller_alone(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    indices = [[0], [1, 2], [99], [3, 3, 3], [0, 99], [2]]
    callers = [Caller({"index": np.array(values, np.int64)}) for values in indices]

    async def scenario() -> None:
        runner = GatedRunner(sessions("lookup"))
        target = batcher(runner, executor, max_batch_rows=64)
        await submit_while_busy(runner, target, callers)
        assert target.queued_rows == 0

    asyncio.run(scenario())
    good = [caller for caller, values in zip(callers, indices, strict=True) if 99 not in values]
    bad = [caller for caller in callers if caller not in good]
    assert_each_got_its_own(good, run_alone(sessions("lookup"), good))
    for caller in bad:
        assert isinstance(caller.error, InvalidRequest)
        assert "99" in caller.error.message


def test_after_a_failure_requests_share_runs_again(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    first = [Caller({"index": np.array([value], np.int64)}) for value in [0, 99, 1]]
    second = [Caller({"index": np.array([value], np.int64)}) for value in [0, 1, 2, 3]]

    async def scenario() -> list[int]:
        runner = GatedRunner(sessions("lookup"))
        target = batcher(runner, executor)
        for wave in (first, second):
            with runner.busy():
                started = len(runner.batches)
                target.submit(wave[0])
                await wait_until_async(lambda: len(runner.batches) > started)  # noqa: B023 -- waited for here
                for caller in wave[1:]:
                    target.submit(caller)
            await wait_until_async(lambda: all(caller.is_answered for caller in wave))  # noqa: B023 -- as above
        return runner.batches

    # One; the pair that fails, then each of it alone; one; the other three together.
    assert asyncio.run(scenario()) == [1, 2, 1, 1, 1, 3]


class BrokenRunner:
    """Fails as no session should."""

    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        raise RuntimeError("out of cheese")


def test_an_unexpected_failure_is_told_to_everybody_it_concerns(executor: ThreadPoolExecutor) -> None:
    callers = [Caller(floats(1.0)), Caller(floats(2.0))]

    async def scenario() -> None:
        target = batcher(BrokenRunner(), executor)
        for caller in callers:
            target.submit(caller)
        await target.close()

    asyncio.run(scenario())
    for caller in callers:
        assert isinstance(caller.error, InferenceFailed)
        assert "out of cheese" in caller.error.message


def test_a_reply_that_fails_leaves_nobody_without_an_answer(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    callers = [Caller(matrix(1, 3, seed)) for seed in range(3)]
    after = Caller(matrix(1, 3, 9))

    def on_batch(batch: Batch) -> None:
        if after not in batch.works:
            raise ZeroDivisionError("a bug")
        answer_all(batch)

    async def scenario() -> None:
        target = batcher(GatedRunner(sessions("affine")), executor, on_batch=on_batch)
        for caller in callers:
            target.submit(caller)
        await wait_until_async(lambda: all(caller.is_answered for caller in callers))
        target.submit(after)
        await target.close()

    asyncio.run(scenario())
    assert all(isinstance(caller.error, InferenceFailed) for caller in callers)
    assert_each_got_its_own([after], run_alone(sessions("affine"), [after]))
