"""Several models on one machine: who runs when, and on how many threads.

Where fairness is counted the runs take time on a clock of the test's own, and none on the wall.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.scheduler import LOOP_SECONDS, Scheduler
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from gateway.types import Array, Signature, TensorSpec
from tests.support.batching import Caller, GatedRunner, answer_all, batcher, floats
from tests.support.waiting import wait_until_async

Sessions = Callable[[str], OnnxSession]
COLUMN = Signature((TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),))


class Machine:
    """One clock, and what ran on it: runs on the loop, one after the other."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []
        self.scheduler = Scheduler(1, self.clock)

    def clock(self) -> float:
        return self.now

    def batcher(self, executor: ThreadPoolExecutor, name: str, seconds: float, rows: int = 1) -> DynamicBatcher:
        """Of a model whose runs, of so many rows, take so long and are known to be short."""
        made = batcher(
            Timed(self, name, seconds),
            executor,
            max_batch_rows=rows,
            scheduler=self.scheduler,
            clock=self.clock,
            on_threads=False,
            max_queue_rows=100_000,
            timeout=1e6,
        )
        made._tuner.last.cost.observe(1, 1e-6)
        return made


class Timed:
    """Moves the clock on."""

    signature = COLUMN

    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self._machine = machine
        self._name = name
        self._seconds = seconds

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        self._machine.now += self._seconds
        self._machine.order.append(self._name)
        return [inputs["x"]]


def fill(target: DynamicBatcher, count: int) -> list[Caller]:
    callers = [Caller(floats(float(number))) for number in range(count)]
    for caller in callers:
        target.submit(caller)
    return callers


def test_ten_times_the_load_is_not_ten_times_the_share(executor: ThreadPoolExecutor) -> None:
    machine = Machine()

    async def scenario() -> None:
        loud, quiet = machine.batcher(executor, "loud", 1e-3), machine.batcher(executor, "quiet", 1e-3)
        fill(loud, 200)
        fill(quiet, 20)
        await asyncio.gather(loud.close(), quiet.close())

    asyncio.run(scenario())
    assert machine.order[:40].count("quiet") == 20
    assert machine.order[40:] == ["loud"] * 180


def test_shares_are_of_seconds_and_not_of_runs(executor: ThreadPoolExecutor) -> None:
    machine = Machine()

    async def scenario() -> tuple[float, float]:
        slow, fast = machine.batcher(executor, "slow", 2e-3), machine.batcher(executor, "fast", 0.25e-3)
        fill(slow, 50)
        callers = fill(fast, 80)
        await wait_until_async(lambda: all(caller.is_answered for caller in callers))
        await slow.close()
        return slow.seat.thread_seconds, fast.seat.thread_seconds

    slow_seconds, fast_seconds = asyncio.run(scenario())
    # 80 short runs take as long as 10 long ones.
    last = max(place for place, name in enumerate(machine.order) if name == "fast")
    assert machine.order[:last].count("slow") == pytest.approx(10, abs=1)
    assert slow_seconds == pytest.approx(50 * 2e-3)
    assert fast_seconds == pytest.approx(80 * 0.25e-3)


def test_a_request_of_an_idle_model_is_next(executor: ThreadPoolExecutor) -> None:
    machine = Machine()

    async def scenario() -> None:
        busy, idle = machine.batcher(executor, "busy", 1e-3), machine.batcher(executor, "idle", 1e-3)
        fill(busy, 500)
        for _ in range(10):
            before = len(machine.order)
            (caller,) = fill(idle, 1)
            await wait_until_async(lambda: caller.is_answered)  # noqa: B023 -- waited for here
            assert "idle" in machine.order[before : before + 2]
        await busy.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("cost", [1.0, 4.0])
def test_a_canary_waits_for_no_more_than_its_last_turn_cost(executor: ThreadPoolExecutor, cost: float) -> None:
    """One request in twenty, of a version that may take four times as long, beside one that is never idle."""
    machine = Machine()

    async def scenario() -> list[int]:
        stable = machine.batcher(executor, "stable", 0.5e-3)
        canary = machine.batcher(executor, "canary", cost * 0.5e-3)
        overtaken = []
        for _ in range(50):
            fill(stable, 19)
            came = len(machine.order)
            (caller,) = fill(canary, 1)
            while not caller.is_answered:  # noqa: ASYNC110 -- each turn of the loop counts
                await asyncio.sleep(0)
            overtaken.append(machine.order[came:].index("canary"))
        await asyncio.gather(stable.close(), canary.close())
        return overtaken

    assert max(asyncio.run(scenario())) <= cost + 1


def test_short_runs_let_the_loop_look_at_its_sockets(executor: ThreadPoolExecutor) -> None:
    machine = Machine()

    async def scenario() -> list[float]:
        for name in "abcdefgh":
            fill(machine.batcher(executor, name, 1.5e-3), 3)
        turns = []
        while len(machine.order) < 24:
            before = machine.now
            await asyncio.sleep(0)
            turns.append(machine.now - before)
        return turns

    turns = asyncio.run(scenario())
    assert max(turns) <= LOOP_SECONDS + 1.5e-3
    # Nobody has a second turn before everybody had the first.
    assert [set(machine.order[start : start + 8]) for start in (0, 8, 16)] == [set("abcdefgh")] * 3


@pytest.mark.parametrize("needs_threads", [False, True])
def test_a_bug_in_one_batcher_does_not_take_the_others_turn(
    executor: ThreadPoolExecutor, needs_threads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()

    def broken(has_threads: bool) -> bool:
        if has_threads or not needs_threads:
            raise ZeroDivisionError("a bug")
        return False

    async def scenario() -> None:
        machine.scheduler.ask(machine.scheduler.join(broken, 1))
        sound = machine.batcher(executor, "sound", 1e-3)
        fill(sound, 3)
        await sound.close()

    asyncio.run(scenario())
    assert machine.order == ["sound"] * 3
    assert "a bug" in caplog.text


class Load(NamedTuple):
    """Of one model."""

    threads: int
    max_runs: int
    rows: list[int]


class Budget:
    """Counts the threads of the runs that are on, at every moment at which one begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = 0
        self.most = 0

    def change(self, threads: int) -> None:
        with self._lock:
            self._on += threads
            self.most = max(self.most, self._on)


class Counted:
    """A runner whose threads are counted while it runs."""

    def __init__(self, session: OnnxSession, budget: Budget, threads: int) -> None:
        self.signature = session.signature
        self._session = session
        self._budget = budget
        self._threads = threads

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        self._budget.change(self._threads)
        try:
            return self._session.run(inputs)
        finally:
            self._budget.change(-self._threads)


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(1, 4),
    loads=st.lists(
        st.builds(Load, st.integers(1, 6), st.integers(1, 4), st.lists(st.integers(1, 5), max_size=12)),
        min_size=1,
        max_size=5,
    ),
)
def test_no_load_exceeds_the_budget_and_everybody_is_answered(
    budget: int, loads: list[Load], sessions: Sessions
) -> None:
    counted, scheduler = Budget(), Scheduler(budget)
    callers: list[Caller] = []

    async def scenario(executor: ThreadPoolExecutor) -> None:
        targets = [
            batcher(
                # More threads than there may be run by themselves.
                Counted(sessions("affine"), counted, min(load.threads, budget)),
                executor,
                max_runs=load.max_runs,
                threads=load.threads,
                scheduler=scheduler,
            )
            for load in loads
        ]
        for place in range(12):
            for target, load in zip(targets, loads, strict=True):
                if place < len(load.rows):
                    callers.append(Caller({"x": np.full((load.rows[place], 3), place, np.float32)}))
                    target.submit(callers[-1])
            await asyncio.sleep(0)
        await asyncio.gather(*(target.close() for target in targets))

    with ThreadPoolExecutor(budget) as executor:
        asyncio.run(scenario(executor))
    assert counted.most <= budget
    assert scheduler.threads_in_use == 0
    for caller in callers:
        np.testing.assert_array_equal(caller.answer[0], 2 * caller.inputs["x"] + 1)


def test_a_run_on_all_cores_is_not_starved_by_runs_on_one(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    order: list[str] = []
    scheduler = Scheduler(2)

    def recorder(name: str) -> Callable[[Batch], None]:
        def on_batch(batch: Batch) -> None:
            order.append(name)
            answer_all(batch)

        return on_batch

    async def scenario() -> None:
        gates = [GatedRunner(sessions("affine_of_any_width")) for _ in range(2)]
        narrow = [
            batcher(gate, executor, max_batch_rows=1, scheduler=scheduler, on_batch=recorder("narrow"))
            for gate in gates
        ]
        wide_runner = sessions("affine_of_any_width")
        wide = batcher(wide_runner, executor, threads=2, scheduler=scheduler, on_batch=recorder("wide"))
        with gates[0].busy(), gates[1].busy():
            for target in narrow:
                fill(target, 30)
            await wait_until_async(lambda: scheduler.threads_in_use == 2)
            (caller,) = fill(wide, 1)
            await asyncio.sleep(0)
        await wait_until_async(lambda: caller.is_answered)
        await asyncio.gather(*(target.close() for target in narrow), wide.close())
        assert wide.seat.waited > 0

    asyncio.run(scenario())
    # The runs that were on, and no other.
    assert order.index("wide") == 2


def test_models_of_different_run_times_share_one_thread_by_time(sessions: Sessions) -> None:
    """Real runs: ten short ones are over before the third of those that take ten times as long."""
    order: list[str] = []

    async def scenario(executor: ThreadPoolExecutor) -> None:
        scheduler = Scheduler(1)

        def target(name: str) -> DynamicBatcher:
            def on_batch(batch: Batch) -> None:
                order.append(name)
                answer_all(batch)

            return batcher(sessions("busy"), executor, max_batch_rows=1, scheduler=scheduler, on_batch=on_batch)

        targets = {"long": (target("long"), 2_000), "short": (target("short"), 100)}
        for batcher_, turns in targets.values():
            for _ in range(11):
                batcher_.submit(Caller({"turns": np.array([[turns]], np.int64)}))
        await asyncio.gather(*(batcher_.close() for batcher_, _ in targets.values()))

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
    assert order[: len(order) - order[::-1].index("short")].count("long") <= 4


def test_whoever_leaves_while_its_model_waits_for_threads_is_not_run(
    sessions: Sessions, executor: ThreadPoolExecutor
) -> None:
    async def scenario() -> None:
        scheduler = Scheduler(1)
        holder, waiter = GatedRunner(sessions("affine")), GatedRunner(sessions("affine"))
        holding, waiting = (batcher(runner, executor, scheduler=scheduler) for runner in (holder, waiter))
        leaver, stayer, other = (Caller({"x": np.ones((1, 3), np.float32)}) for _ in range(3))
        with holder.busy():
            holding.submit(other)
            await wait_until_async(lambda: holder.batches)
            waiting.submit(leaver)
            await asyncio.sleep(0)
            waiting.discard(leaver)
            await waiting_is_asking(waiting)
            waiting.submit(stayer)
        await asyncio.gather(holding.close(), waiting.close())
        assert waiter.batches == [1]
        assert not leaver.is_answered
        assert stayer.answer

    asyncio.run(scenario())


async def waiting_is_asking(target: DynamicBatcher) -> None:
    await wait_until_async(lambda: target.seat.asks_since is not None)


def test_models_that_are_backlogged_all_close(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> list[Caller]:
        scheduler = Scheduler(2)
        targets = [
            batcher(sessions("affine"), executor, max_batch_rows=2, threads=threads, scheduler=scheduler)
            for threads in (1, 2, 1, 3)
        ]
        callers = []
        for target in targets:
            for _ in range(20):
                callers.append(Caller({"x": np.ones((1, 3), np.float32)}))
                target.submit(callers[-1])
        async with asyncio.timeout(30):
            await asyncio.gather(*(target.close() for target in targets))
        return callers

    assert all(caller.answer for caller in asyncio.run(scenario()))


def test_who_shares_with_others_is_expected_to_take_longer(sessions: Sessions, executor: ThreadPoolExecutor) -> None:
    async def scenario() -> list[float]:
        scheduler = Scheduler(1)
        gates = [GatedRunner(sessions("affine")) for _ in range(3)]
        targets = [batcher(gate, executor, scheduler=scheduler) for gate in gates]
        counts = [scheduler.runs_at_once(targets[0].seat, on_loop=False)]
        with gates[0].busy():
            for target, gate in zip(targets, gates, strict=True):
                target.submit(Caller({"x": np.ones((1, 3), np.float32)}))
                if gate is gates[0]:
                    await wait_until_async(lambda: gates[0].batches)
                else:
                    await waiting_is_asking(target)
                counts.append(scheduler.runs_at_once(targets[0].seat, on_loop=False))
            counts.append(scheduler.runs_at_once(targets[1].seat, on_loop=False))
        await asyncio.gather(*(target.close() for target in targets))
        return counts

    assert asyncio.run(scenario()) == [1.0, 1.0, 1 / 2, 1 / 3, 1 / 2]
