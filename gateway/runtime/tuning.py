"""How a session is used best, measured while a model is loaded: rows in a run, and runs side by side.

More rows in a run are not always more rows a second: on a CPU a model that computes much for each row is fastest while
its intermediate results fit the caches. A 3 MB network ran 500 rows/s one by one and 327 in batches of 32. Nor is one
run on all cores always faster than a run on each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

Run: TypeAlias = Callable[[int], float | None]
"""Takes a number of rows and returns the seconds of one run, or None if the model refuses made-up values."""

REPEATS = 3
"""Runs of one size; the fastest counts, since everything else on the machine can only slow a run down."""
BUDGET_SECONDS = 2.0
"""For all trials of one session; sizes that are not reached by then are taken to be no better."""
WORTHWHILE = 0.95
"""Of the best rate: among sizes as good as this the largest is chosen, as each run costs the gateway something too.
Runs side by side need no more, since they keep the cores busy while the gateway answers the last one."""
HOPELESS = 0.7
"""Of the best rate: a size this slow ends the search."""
PATIENCE = 2.0
"""How many times longer than on all cores a run may take on one, for the rate: a lone caller waits for it."""


class Plan(NamedTuple):
    """A way to use a session."""

    batch_rows: int
    seconds: float
    """Of a run with as many rows; 0 if the model refuses made-up values, as nothing is known then."""
    runs: int = 1
    """Side by side, each on a thread of its own."""

    def __str__(self) -> str:
        rows = "row" if self.batch_rows == 1 else "rows"
        return f"{self.runs} x {self.batch_rows} {rows} at once are the fastest here"

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.runs * self.batch_rows / self.seconds if self.seconds else 0.0

    def is_better(self, other: Plan) -> bool:
        """Whether this plan of runs side by side is preferred to the other, of one run on all cores."""
        return self.rate >= WORTHWHILE * other.rate and self.seconds <= PATIENCE * other.seconds


def plan_alone(run: Run, limit: int) -> Plan:
    """One run at a time, with the number of rows from 1 to `limit` that has the best rate."""
    rates: dict[int, float] = {}
    spent = 0.0
    # The very first run allocates, and on CUDA loads kernels: it says nothing about the next.
    run(1)
    for rows in batch_sizes(limit):
        fastest = math.inf
        for _ in range(REPEATS):
            seconds = run(rows)
            if seconds is None:
                return Plan(limit, 0.0)
            spent += seconds
            fastest = min(fastest, seconds)
        rates[rows] = rows / fastest
        if spent > BUDGET_SECONDS or rates[rows] < HOPELESS * max(rates.values()):
            break
    best = max(rates.values())
    rows = max(rows for rows, rate in rates.items() if rate >= WORTHWHILE * best)
    return Plan(rows, rows / rates[rows])


def plan_side_by_side(run: Run, alone: Plan, runs: int) -> Plan:
    """The rows of a plan for one run, in `runs` runs at once."""

    def repeat(_worker: int) -> None:
        for _ in range(REPEATS):
            run(alone.batch_rows)

    with ThreadPoolExecutor(runs) as workers:
        started = time.perf_counter()
        list(workers.map(repeat, range(runs)))
        elapsed = time.perf_counter() - started
    return Plan(alone.batch_rows, elapsed / REPEATS, runs)


def batch_sizes(limit: int) -> list[int]:
    """Powers of two below the limit, and the limit."""
    return [*(2**power for power in range(limit.bit_length()) if 2**power < limit), limit]
