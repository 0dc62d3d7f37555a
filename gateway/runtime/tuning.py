"""How a model is run best, measured before it has traffic: rows in a run, and runs side by side.

More rows in a run are not always more rows a second: on a CPU a model that computes much for each row is fastest while
its intermediate results fit the caches. A 3 MB network ran 185 rows/s in batches of 4 and 137 in batches of 32. Nor is
one run on all cores always faster than a run on each.

Everything else on the machine can only slow a run down, so the fastest run of a size counts; and the sizes take turns,
so that a busy spell does not meet one of them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeAlias

from gateway.runtime.choice import INLINE_SECONDS, Point, choose
from gateway.runtime.cost_model import FIRST_P99

Run: TypeAlias = Callable[[int], float | None]
"""Takes a number of rows and returns the seconds of one run, or None if the model refuses made-up values."""

Samples: TypeAlias = dict[int, list[float]]
"""Seconds of runs, by their rows."""

ROUNDS = 8
BUDGET_SECONDS = 3.0
"""For all rounds of one measurement; sizes that are not reached by then are taken to be no better."""
LARGEST_SHARE = 0.25
"""Of the budget: a larger size that would take more for one run is not tried."""
HOPELESS = 0.7
"""Of the best rate: a size this slow ends the search among the larger ones."""
SETTLED = 4
CONTENDER = 0.8
"""Of the best rate: a size slower than this is measured no more often than `SETTLED` times."""
PARALLEL_SECONDS = 5e-3
"""A model whose best batch takes longer on one thread gets all cores, in one run or in several side by side; for less,
threads cost more CPU time than they save waiting."""
SIDE_BY_SIDE = 0.95
"""Of the rate of one run on all cores is enough for runs side by side: they keep the cores busy while the gateway
answers the last one."""
PATIENCE = 2.0
"""How many times longer than on all cores a run of the same rows may take for it: a lone caller waits for that."""


class CoreUse(NamedTuple):
    """How the cores are used: runs side by side, and ONNX Runtime's threads in each."""

    runs: int
    threads: int

    def __str__(self) -> str:
        runs = "one run" if self.runs == 1 else f"{self.runs} runs side by side"
        return f"{runs} on {self.threads} thread{'s' if self.threads > 1 else ''}"


def core_uses(instances: int | None, threads: int | None, cores: int) -> tuple[CoreUse, ...]:
    """Those that may be chosen from, given what operators fixed (`instances` runs, `threads` in each)."""
    if instances is not None:
        return (CoreUse(instances, threads or max(1, cores // instances)),)
    if threads is not None:
        options: tuple[CoreUse, ...] = (CoreUse(1, threads), CoreUse(max(1, cores // threads), threads))
    else:
        options = (CoreUse(1, 1), CoreUse(1, cores), CoreUse(cores, 1))
    return tuple(dict.fromkeys(options))


def powers_of_two(limit: int) -> tuple[int, ...]:
    """Those up to the limit."""
    return tuple(2**power for power in range(limit.bit_length()))


def measure(
    runs: Mapping[CoreUse, Run], sizes: Sequence[int], budget: float = BUDGET_SECONDS, rounds: int = ROUNDS
) -> dict[CoreUse, Samples]:
    """Seconds of runs by core_use and rows; nothing if the model refuses made-up values.

    `sizes` ascend; the first of them is measured in any case.
    """
    samples: dict[CoreUse, Samples] = {core_use: {} for core_use in runs}
    for run in runs.values():
        # The very first run allocates, and on CUDA loads kernels: it says nothing about the next.
        if run(sizes[0]) is None:
            return {}
    spent = 0.0
    for _ in range(rounds):
        for rows in sizes:
            for core_use, run in runs.items():
                if not _is_worth(samples, core_use, rows, budget) or (spent > budget and samples[core_use]):
                    continue
                seconds = run(rows)
                if seconds is None:
                    return {}
                samples[core_use].setdefault(rows, []).append(seconds)
                spent += seconds
    return samples


def _is_worth(samples: Mapping[CoreUse, Samples], core_use: CoreUse, rows: int, budget: float) -> bool:
    known = samples[core_use]
    smaller = max((size for size in known if size < rows), default=None)
    if rows not in known:
        if smaller is None:
            return True
        expected = min(known[smaller]) * rows / smaller
        return expected <= LARGEST_SHARE * budget and not _is_slower(samples, core_use, smaller, HOPELESS)
    is_settled = len(known[rows]) >= SETTLED
    return not (is_settled and _is_slower(samples, core_use, rows, CONTENDER))


def _is_slower(samples: Mapping[CoreUse, Samples], core_use: CoreUse, rows: int, share: float) -> bool:
    """Whether a size, if its runs are not short anyway, has less than a share of the best rate of all core_uses."""
    rates = {
        (one, size): one.runs * size / min(seconds) for one, sizes in samples.items() for size, seconds in sizes.items()
    }
    seconds = min(samples[core_use][rows])
    return seconds >= INLINE_SECONDS and rates[core_use, rows] < share * max(rates.values())


def points(samples: Samples) -> list[Point]:
    """What the samples say, by ascending rows."""
    return [Point(rows, min(seconds), min(seconds) * FIRST_P99) for rows, seconds in sorted(samples.items())]


def best_core_uses(samples: Mapping[CoreUse, Samples], slo: float | None = None) -> list[CoreUse]:
    """The one to use of those measured: one, or one run at a time and several side by side.

    The other comes second, unless it would not do: on a busy machine nothing that was measured at load is sure.
    """
    alone, apart = min(samples), max(samples)
    curves = {core_use: points(samples[core_use]) for core_use in (alone, apart)}
    chosen = {core_use: choose(curve, slo=slo) for core_use, curve in curves.items()}
    if alone == apart:
        return [alone]
    if slo is not None and (chosen[alone].latency <= slo) != (chosen[apart].latency <= slo):
        return [alone if chosen[alone].latency <= slo else apart]
    longer = min(
        min(samples[apart][rows]) / min(samples[alone][rows]) for rows in samples[apart].keys() & samples[alone].keys()
    )
    if longer > PATIENCE:
        return [alone]
    advantage = chosen[apart].rate(apart.runs) / chosen[alone].rate(alone.runs)
    return [apart, alone] if advantage >= SIDE_BY_SIDE else [alone, apart]


def side_by_side(run: Run, runs: int, workers: Executor) -> Run:
    """As many runs at once, each on a worker of its own; the time until the last of them is over."""
    if runs == 1:
        return run

    def run_all(rows: int) -> float | None:
        started = time.perf_counter()
        done: Iterable[float | None] = list(workers.map(run, [rows] * runs))
        return None if None in done else time.perf_counter() - started

    return run_all
