"""The rows of a run follow what runs cost, are explored while the model is saturated, and keep to what was asked."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.choice import WORTHWHILE
from gateway.runtime.cost_model import CostModel
from gateway.runtime.tuner import EXPLORE_EVERY, MAX_SHAPES, BatchPolicy, ShapeTuner, Tuner
from gateway.runtime.tuning import powers_of_two

SIZES = powers_of_two(64)
CACHED = {1: 12.2e-3, 2: 23.3e-3, 4: 45.3e-3, 8: 109e-3, 16: 209e-3, 32: 428e-3, 64: 0.9}
"""Fastest at 4 rows."""
WEIGHTY = {rows: 0.012 + 0.001 * rows for rows in SIZES}
"""Bound by reading its weights: the more rows, the more of them a second."""


def warmed(seconds: dict[int, float], policy: BatchPolicy | None = None) -> ShapeTuner:
    cost = CostModel()
    for rows, each in seconds.items():
        cost.warm(rows, each)
    return ShapeTuner(policy or BatchPolicy(SIZES), cost)


def serve(tuner: ShapeTuner, truth: dict[int, float], waiting: int, runs: int, noise: float = 0.0) -> list[int]:
    """Runs with as many rows waiting before each, of a model that takes as long as `truth` says; the rows they had."""
    random_ = random.Random(5)
    taken = []
    for _ in range(runs):
        rows = min(tuner.take(waiting), waiting)
        size = max(known for known in truth if known <= rows)
        tuner.cost.observe(rows, truth[size] * rows / size * (1 + noise * random_.random()), 1e-3)
        taken.append(rows)
    return taken


def test_as_many_rows_as_may_be_until_something_is_known() -> None:
    assert ShapeTuner(BatchPolicy(SIZES)).rows == 64
    assert ShapeTuner(BatchPolicy(SIZES), rows=8).rows == 8


def test_what_was_measured_at_load_is_used_at_once() -> None:
    assert warmed(CACHED).rows == 4


@pytest.mark.parametrize("waiting", [7, 28, 500])
@pytest.mark.parametrize("believed", [1, 8, 32, 64])
def test_a_wrong_measurement_at_load_is_corrected_by_traffic(believed: int, waiting: int) -> None:
    tuner = warmed({rows: seconds * (0.7 if rows == believed else 1.2) for rows, seconds in CACHED.items()})
    assert tuner.rows == believed
    serve(tuner, CACHED, waiting, 1500, noise=0.1)
    taken = serve(tuner, CACHED, waiting, 320, noise=0.1)
    rows_per_second = sum(taken) / sum(CACHED[max(size for size in CACHED if size <= rows)] for rows in taken)
    assert rows_per_second >= 0.93 * 4 / CACHED[4]


def test_a_model_that_gains_from_rows_gets_back_to_many() -> None:
    truth = {rows: 1e-4 + 1e-6 * rows for rows in SIZES}
    tuner = warmed({rows: seconds * (40 if rows > 4 else 1) for rows, seconds in truth.items()})
    assert tuner.rows == 4
    serve(tuner, truth, 500, 1500, noise=0.1)
    assert tuner.rows == 64


def test_sizes_that_were_never_run_are_tried_under_load() -> None:
    truth = {rows: 1e-4 + 1e-6 * rows for rows in SIZES}
    tuner = warmed({rows: truth[rows] for rows in (1, 2, 4)})
    assert tuner.rows == 4
    serve(tuner, truth, 500, 500)
    assert tuner.rows == 64


def test_only_one_run_in_some_tries_another_size_and_none_while_nothing_piles_up() -> None:
    tuner = warmed(CACHED)
    taken = serve(tuner, CACHED, 100, 320)
    assert taken.count(4) >= 320 * (1 - 1 / EXPLORE_EVERY)
    assert {1, 2, 8} <= set(taken)
    quiet = warmed(CACHED)
    assert {quiet.take(2) for _ in range(100)} == {4}


def test_the_target_bounds_the_rows_and_what_is_tried() -> None:
    policy = BatchPolicy(SIZES, slo=0.080)
    # Twice the 99th percentile, which is thought to be 1.5 times the mean until runs say otherwise.
    tuner = warmed(CACHED, policy)
    assert tuner.rows == 2
    # The last of four rows is through in 82 ms at the most, until runs have said that none takes longer than others.
    steady = serve(tuner, CACHED, 3, 3000)
    assert max(steady[:EXPLORE_EVERY]) == 2
    # With runs that are all alike two runs with 2 rows are over in 47 ms, and with 4 never in 80.
    assert tuner.rows == 2
    assert max(steady) == 2


def test_the_target_is_kept_when_runs_become_irregular() -> None:
    tuner = warmed(CACHED, BatchPolicy(SIZES, slo=0.200))
    assert tuner.rows == 4
    random_ = random.Random(1)
    for _ in range(3000):
        rows = tuner.take(100)
        tuner.cost.observe(rows, CACHED[rows] * (4.0 if random_.random() < 0.05 else 1.0), 1e-3)
    assert tuner.rows < 4


def test_a_backlog_that_misses_the_target_is_worked_off_at_the_best_rate() -> None:
    tuner = warmed(WEIGHTY, BatchPolicy(SIZES, slo=0.080))
    assert tuner.rows == 8

    assert [tuner.take(waiting) for waiting in (1, 8, 19)] == [8, 8, 8]
    assert [tuner.take(waiting) for waiting in (21, 63, 64, 500)] == [16, 32, 64, 64]
    assert tuner.take(19) == 8
    assert tuner.rows == 8


def test_the_target_is_kept_near_the_capacity_that_it_leaves() -> None:
    """At 90 % of what runs of the chosen size can do, the queue would outlast the target if they all had that size."""
    tuner, random_ = warmed(WEIGHTY, BatchPolicy(SIZES, slo=0.080)), random.Random(3)
    rate = 0.9 * 8 / WEIGHTY[8]
    now = arrival = 0.0
    queue: deque[float] = deque()
    waits: list[float] = []
    while len(waits) < 20_000:
        while arrival <= now:
            queue.append(arrival)
            arrival += random_.expovariate(rate)
        rows = min(tuner.take(len(queue)), len(queue))
        seconds = (0.012 + 0.001 * rows) * (2 if random_.random() < 0.02 else 1)
        now = now + seconds if queue else arrival
        if queue:
            tuner.cost.observe(rows, seconds, 1e-3)
        waits += [now - queue.popleft() for _ in range(rows)]
    assert sorted(waits)[int(0.99 * len(waits))] <= 0.080


def test_fixed_rows_stay_whatever_happens() -> None:
    tuner = ShapeTuner(BatchPolicy((7,)))
    assert set(serve(tuner, CACHED, 100, 200)) == {7}
    assert tuner.rows == 7


def test_preferred_rows_are_filled_exactly_where_enough_wait() -> None:
    tuner = ShapeTuner(BatchPolicy((4, 8), is_preferred=True))
    assert [tuner.take(waiting) for waiting in (2, 4, 7, 8, 100)] == [8, 4, 4, 8, 8]


@given(
    truth=st.fixed_dictionaries({rows: st.floats(1e-4, 1.0) for rows in SIZES}),
    waiting=st.integers(1, 300),
    seed=st.integers(0, 100),
)
def test_for_any_curve_a_run_gets_an_allowed_size_and_the_choice_is_the_best_known(
    truth: dict[int, float], waiting: int, seed: int
) -> None:
    tuner = warmed(truth)
    random_ = random.Random(seed)
    for _ in range(100):
        rows = tuner.take(random_.randint(1, waiting))
        assert rows in SIZES
        tuner.cost.observe(rows, truth[rows] * random_.uniform(1, 2), 1e-3)
    tuner.take(1000)
    tuner.choose()
    best = max(tuner.point(rows).rate() for rows in SIZES)
    assert tuner.point(tuner.rows).rate() >= WORTHWHILE * best


def test_shapes_learn_apart_and_the_least_recent_is_forgotten() -> None:
    tuner = Tuner(BatchPolicy(SIZES))
    narrow, wide = ((8,),), ((512,),)
    for rows, seconds in CACHED.items():
        tuner.of(narrow).cost.warm(rows, 1e-4)
        tuner.of(wide).cost.warm(rows, seconds)
    for bucket in (narrow, wide):
        tuner.of(bucket).choose()
    assert (tuner.of(narrow).rows, tuner.of(wide).rows) == (64, 4)
    # A new shape begins as the last one was.
    assert tuner.last is tuner.of(wide)
    assert tuner.of(((9,),)).rows == 4
    for extent in range(MAX_SHAPES - 2):
        tuner.of(narrow)
        tuner.of(((1000 + extent,),))
    assert len(tuner.shapes) == MAX_SHAPES
    assert narrow in tuner.shapes
    assert wide not in tuner.shapes
