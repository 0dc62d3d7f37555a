"""The rule of this file: whatever company a caller's rows had, the caller gets what it would have got alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, TooManyRequests, Unavailable
from gateway.runtime.batcher import Batch, DynamicBatcher, Runner
from gateway.runtime.session import OnnxSession
from gateway.types import Array, Signature, TensorSpec
from tests.support.batching import Caller, GatedRunner, answer_all, batcher
from tests.support.waiting import wait_until_async


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


Sessions = Callable[[str], OnnxSession]


def floats(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32).reshape(len(values), 1)}


def matrix(rows: int, columns: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)}


def run_alone(session: Runner, callers: list[Caller]) -> list[list[Array]]:
    return [session.run(caller.inputs) for caller in callers]


def assert_each_got_its_own(callers: list[Caller], expected: list[list[Array]]) -> None:
    for caller, outputs in zip(callers, expected, strict=True):
        assert len(caller.answer) == len(outputs)
        for mine, alone in zip(caller.answer, outputs, strict=True):
            assert mine.dtype == alone.dtype
            np.testing.assert_array_equal(mine, alone)


async def submit_while_busy(runner: GatedRunner, target: DynamicBatcher, callers: list[Caller]) -> None:
    """The first caller keeps the runner busy while the others queue up; all are answered at the end."""
    with runner.busy():
        target.submit(callers[0])
        await wait_until_async(lambda: runner.batches)
        for caller in callers[1:]:
            target.submit(caller)
    await target.close()


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


def test_a_model_that_is_not_as_fast_as_it_was_leaves_the_loop_for_good(executor: ThreadPoolExecutor) -> None:
    runner = SometimesSlow()

    async def scenario() -> None:
        target = batcher(runner, executor, on_threads=False)
        for milliseconds in [*[0.0] * 20, 200.0, *[0.0] * 5]:
            caller = Caller(floats(milliseconds))
            target.submit(caller)
            await wait_until_async(lambda: caller.is_answered)  # noqa: B023 -- waited for here
        await target.close()

    asyncio.run(scenario())
    on_loop = [thread == threading.get_ident() for thread in runner.threads]
    assert on_loop[10:20] == [True] * 10
    assert on_loop[21:] == [False] * 5


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
        target.submit(Caller(matrix(1, 3)))
        await wait_until_async(lambda: target.queued_rows == 0)
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
