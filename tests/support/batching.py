"""Callers of a batcher that remember what they were told, and a runner that works only when it is let."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from gateway.errors import GatewayError
from gateway.runtime.batcher import DynamicBatcher, Runner
from gateway.runtime.layout import Layout
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.tuner import BatchPolicy, Tuner
from gateway.runtime.work import Batch, Work
from gateway.types import Array, Signature
from tests.support.waiting import wait_until_async


class Caller(Work):
    """Rows and, later, exactly one answer or error."""

    __slots__ = ("answers", "errors")

    def __init__(self, inputs: dict[str, Array], rows: int | None = None) -> None:
        super().__init__(inputs, rows if rows is not None else len(next(iter(inputs.values()))))
        self.answers: list[list[Array]] = []
        self.errors: list[GatewayError] = []

    def fail(self, error: GatewayError) -> None:
        """Remember the error."""
        self.errors.append(error)

    @property
    def is_answered(self) -> bool:
        """Whether anything came back."""
        return bool(self.answers or self.errors)

    @property
    def answer(self) -> list[Array]:
        """All outputs of the one answer."""
        assert not self.errors, self.errors
        (answer,) = self.answers
        return answer

    @property
    def error(self) -> GatewayError:
        """The one error."""
        assert not self.answers
        (error,) = self.errors
        return error


def answer_all(batch: Batch) -> None:
    """What the data plane does, without routes, ids and metrics."""
    for work in batch.works:
        assert isinstance(work, Caller)
        work.answers.append([batch.rows_of(work, output) for output in batch.outputs])


class GatedRunner:
    """A runner in front of another. While the gate is closed its runs wait; what was run is remembered."""

    def __init__(self, runner: Runner) -> None:
        self.signature: Signature = runner.signature
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self._runner = runner

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """Run when let; the rows of each run stand in `batches`."""
        self.batches.append(len(next(iter(inputs.values()))))
        assert self.gate.wait(30.0)
        return self._runner.run(inputs)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Runs that begin inside wait until the end of the block."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def batcher(
    runner: Runner,
    executor: ThreadPoolExecutor,
    *,
    max_batch_rows: int = 8,
    max_queue_rows: int = 1_000,
    timeout: float = 30.0,
    on_batch: Callable[[Batch], None] = answer_all,
    clock: Callable[[], float] = time.monotonic,
    max_runs: int = 1,
    threads: int = 1,
    max_delay: float = 0.0,
    on_threads: bool = True,
    scheduler: Scheduler | None = None,
    layout: Layout | None = None,
) -> DynamicBatcher:
    """A batcher with limits that suit a test, alone on its machine unless it is given a scheduler.

    Unless told otherwise it never runs on the loop, where a closed gate would stop the test itself.
    """
    made = DynamicBatcher(
        runner,
        executor,
        scheduler or Scheduler(max_runs * threads),
        tuner=Tuner(BatchPolicy((max_batch_rows,))),
        max_queue_rows=max_queue_rows,
        timeout=timeout,
        on_batch=on_batch,
        max_runs=max_runs,
        threads=threads,
        max_delay=max_delay,
        layout=layout,
        clock=clock,
    )
    if on_threads:
        made._surprises = math.inf
    return made


def floats(*values: float) -> dict[str, Array]:
    """One column."""
    return {"x": np.array(values, np.float32).reshape(len(values), 1)}


def matrix(rows: int, columns: int, seed: int = 0) -> dict[str, Array]:
    """Random numbers, the same for the same seed."""
    return {"x": np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)}


async def submit_while_busy(runner: GatedRunner, target: DynamicBatcher, callers: list[Caller]) -> None:
    """The first caller keeps the runner busy while the others queue up; all are answered at the end."""
    with runner.busy():
        target.submit(callers[0])
        await wait_until_async(lambda: runner.batches)
        for caller in callers[1:]:
            target.submit(caller)
    await target.close()


def run_alone(session: Runner, callers: list[Caller]) -> list[list[Array]]:
    return [session.run(caller.inputs) for caller in callers]


def assert_each_got_its_own(callers: list[Caller], expected: list[list[Array]]) -> None:
    for caller, outputs in zip(callers, expected, strict=True):
        assert len(caller.answer) == len(outputs)
        for mine, alone in zip(caller.answer, outputs, strict=True):
            assert mine.dtype == alone.dtype
            np.testing.assert_array_equal(mine, alone)
