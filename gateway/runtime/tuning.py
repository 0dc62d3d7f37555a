"""How many rows a run should have, measured while a model is loaded.

More rows in a run are not always more rows a second: on a CPU a model that computes much for each row is fastest while
its intermediate results fit the caches. A 3 MB network ran 500 rows/s one by one and 327 in batches of 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

REPEATS = 3
"""Runs of one size; the fastest counts, since everything else on the machine can only slow a run down."""
BUDGET_SECONDS = 2.0
"""For all trials of one session; sizes that are not reached by then are taken to be no better."""
WORTHWHILE = 0.95
"""Of the best rate: among sizes as good as this the largest is chosen, as each run costs the gateway something too."""
HOPELESS = 0.7
"""Of the best rate: a size this slow ends the search."""


def best_batch_rows(run: Callable[[int], float | None], limit: int) -> tuple[int, float | None]:
    """The number of rows from 1 to `limit` with the best rate, and how long such a run takes in seconds.

    `run` takes a number of rows and returns the seconds of one run, or None if the model refuses to run on made-up
    values; then nothing is known and `limit` is returned.
    """
    rates: dict[int, float] = {}
    spent = 0.0
    # The very first run allocates, and on CUDA loads kernels: it says nothing about the next.
    run(1)
    for rows in _sizes(limit):
        fastest = math.inf
        for _ in range(REPEATS):
            seconds = run(rows)
            if seconds is None:
                return limit, None
            spent += seconds
            fastest = min(fastest, seconds)
        rates[rows] = rows / fastest
        if spent > BUDGET_SECONDS or rates[rows] < HOPELESS * max(rates.values()):
            break
    best = max(rates.values())
    rows = max(rows for rows, rate in rates.items() if rate >= WORTHWHILE * best)
    return rows, rows / rates[rows]


def _sizes(limit: int) -> list[int]:
    """Powers of two below the limit, and the limit."""
    return [*(2**power for power in range(limit.bit_length()) if 2**power < limit), limit]
