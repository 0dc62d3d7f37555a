"""Why a batch left the queue when it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.runtime.layout import Layout
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from tests.support.batching import Caller, GatedRunner, answer_all, batcher, matrix, submit_while_busy
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]


@pytest.mark.parametrize(
    ("others", "reasons"),
    [
        (0, [("idle", 1)]),
        (3, [("idle", 1), ("busy", 3)]),
        (8, [("idle", 1), ("busy", 8)]),
        (11, [("idle", 1), ("full", 8), ("busy", 3)]),
    ],
)
def test_what_waited_leaves_when_the_run_before_it_is_over(
    sessions: Sessions, executor: ThreadPoolExecutor, others: int, reasons: list[tuple[str, int]]
) -> None:
    left: list[tuple[str, int]] = []

    def on_batch(batch: Batch) -> None:
        left.append((batch.left, batch.rows))
        answer_all(batch)

    async def scenario() -> None:
        runner = GatedRunner(sessions("affine"))
        target = batcher(runner, executor, on_batch=on_batch)
        await submit_while_busy(runner, target, [Caller(matrix(1, 3)) for _ in range(1 + others)])

    asyncio.run(scenario())
    assert left == reasons


@pytest.mark.parametrize(("shares_runs", "reasons"), [(True, ["delay"]), (False, ["alone", "alone"])])
def test_a_delay_and_a_model_whose_callers_run_alone(
    sessions: Sessions, executor: ThreadPoolExecutor, shares_runs: bool, reasons: list[str]
) -> None:
    left: list[str] = []

    def on_batch(batch: Batch) -> None:
        left.append(batch.left)
        answer_all(batch)

    async def scenario() -> None:
        session = sessions("affine")
        layout = Layout(session.signature, shares_runs=shares_runs)
        target = batcher(session, executor, on_batch=on_batch, max_delay=0.01, layout=layout)
        callers = [Caller(matrix(1, 3)), Caller(matrix(1, 3))]
        for caller in callers:
            target.submit(caller)
        await wait_until_async(lambda: all(caller.is_answered for caller in callers))
        await target.close()

    asyncio.run(scenario())
    assert left == reasons
