"""The way to run a model is found although the machine is busy at times, and the search ends."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.runtime.choice import choose
from gateway.runtime.tuning import (
    BUDGET_SECONDS,
    ROUNDS,
    SETTLED,
    CoreUse,
    best_core_uses,
    core_uses,
    measure,
    points,
    powers_of_two,
    side_by_side,
)

ONE = CoreUse(1, 1)
WIDE = CoreUse(1, 2)
APART = CoreUse(2, 1)

CACHED = {1: 12.2e-3, 2: 23.3e-3, 4: 45.3e-3, 8: 109e-3, 16: 209e-3, 32: 428e-3}
"""Fastest at 4 rows; measured."""
ON_ALL_CORES = {1: 8.2e-3, 2: 13.6e-3, 4: 25.5e-3, 8: 51.7e-3, 16: 102e-3, 32: 224e-3}
"""The same model with two threads in one run."""


class Curve:
    """A model that takes as long as a table says, or longer, and remembers what it ran."""

    def __init__(self, seconds: dict[int, float], slow_down: list[float] | None = None) -> None:
        self.seconds = seconds
        self.slow_down = slow_down or [1.0]
        self.ran: list[int] = []

    def __call__(self, rows: int) -> float | None:
        factor = self.slow_down[len(self.ran) % len(self.slow_down)]
        self.ran.append(rows)
        return self.seconds[rows] * factor


def chosen(curve: Curve, limit: int) -> int:
    return choose(points(measure({ONE: curve}, powers_of_two(limit))[ONE])).rows


def test_a_model_that_gains_from_rows_is_tried_with_all_of_them() -> None:
    curve = Curve({rows: 1e-4 + 1e-6 * rows for rows in powers_of_two(64)})
    assert chosen(curve, 64) == 64
    assert [curve.ran.count(rows) for rows in powers_of_two(64)] == [ROUNDS + 1, *[ROUNDS] * 6]


def test_sizes_past_a_hopeless_one_are_not_tried() -> None:
    curve = Curve({1: 8e-3, 2: 12e-3, 4: 20e-3, 8: 45e-3, 16: 96e-3, 32: 260e-3, 64: 1.0})
    assert chosen(curve, 64) == 4
    assert max(curve.ran) == 32
    # Some times more, as it may have been an accident.
    assert curve.ran.count(32) == SETTLED


@pytest.mark.parametrize("seed", range(20))
def test_busy_spells_while_measuring_do_not_mislead(seed: int) -> None:
    random_ = random.Random(seed)
    # Spells of some runs in which everything takes up to three times as long, half of the time.
    spells: list[float] = []
    while len(spells) < 500:
        factor = random_.uniform(1.3, 3.0) if random_.random() < 0.5 else 1.0
        spells += [factor] * random_.randint(1, 4)
    samples = measure({WIDE: Curve(ON_ALL_CORES, spells), APART: Curve(CACHED, spells[7:])}, powers_of_two(32))
    core_use = best_core_uses(samples)[0]
    rows = choose(points(samples[core_use])).rows
    truth = {WIDE: ON_ALL_CORES, APART: CACHED}
    best = max(one.runs * size / curve[size] for one, curve in truth.items() for size in curve)
    assert core_use.runs * rows / truth[core_use][rows] >= 0.8 * best


def test_a_slow_model_is_not_tried_for_ever() -> None:
    curve = Curve({rows: 0.4 * rows for rows in powers_of_two(64)})
    assert set(measure({ONE: curve}, powers_of_two(64))[ONE]) == {1}
    assert sum(curve.seconds[rows] for rows in curve.ran) < 2 * BUDGET_SECONDS


def test_a_model_slower_than_the_budget_is_tried_once_each_way() -> None:
    slow, slower = Curve({1: 10.0}), Curve({1: 11.0})
    samples = measure({WIDE: slow, APART: slower}, (1,))
    assert samples == {WIDE: {1: [10.0]}, APART: {1: [11.0]}}


@pytest.mark.parametrize("answers", [[None], [1e-3, None], [1e-3, 1e-3, None]])
def test_of_a_model_that_refuses_made_up_values_nothing_is_known(answers: list[float | None]) -> None:
    left = iter(answers)
    assert measure({ONE: lambda _rows: next(left)}, (1, 2, 4)) == {}


def test_runs_side_by_side_are_measured_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)

    def run(_rows: int) -> float:
        # Would never return if the runs came one after the other.
        both.wait()
        return 1e-3

    with ThreadPoolExecutor(2) as workers:
        seconds = side_by_side(run, 2, workers)(4)
        assert seconds is not None
        assert 0 < seconds < 30
        assert side_by_side(lambda _rows: None, 2, workers)(4) is None
        assert side_by_side(run, 1, workers) is run


@pytest.mark.parametrize(
    ("apart", "wide", "core_use"),
    [
        ({2: 0.020}, {2: 0.0105}, APART),
        ({2: 0.020}, {2: 0.0101}, APART),
        ({2: 0.020}, {2: 0.0090}, WIDE),
        # A third faster together, but a lone caller would wait more than twice as long.
        ({1: 0.030, 8: 0.130}, {1: 0.010, 8: 0.060}, WIDE),
    ],
)
def test_side_by_side_must_be_as_fast_and_not_much_later(
    apart: dict[int, float], wide: dict[int, float], core_use: CoreUse
) -> None:
    samples = {
        one: {rows: [seconds] for rows, seconds in curve.items()} for one, curve in ((APART, apart), (WIDE, wide))
    }
    assert best_core_uses(samples)[0] == core_use


def test_a_target_has_a_say_in_how_the_cores_are_used() -> None:
    samples = {
        APART: {1: [0.012], 4: [0.045]},
        WIDE: {1: [0.008], 4: [0.026]},
    }
    assert best_core_uses(samples)[0] == APART
    # Only runs on both cores are over soon enough.
    assert best_core_uses(samples, slo=0.030)[0] == WIDE


@pytest.mark.parametrize(
    ("instances", "threads", "cores", "expected"),
    [
        (None, None, 1, [(1, 1)]),
        (None, None, 4, [(1, 1), (1, 4), (4, 1)]),
        (2, None, 4, [(2, 2)]),
        (8, None, 4, [(8, 1)]),
        (3, 5, 4, [(3, 5)]),
        (None, 2, 4, [(1, 2), (2, 2)]),
        (None, 4, 4, [(1, 4)]),
        (None, 8, 4, [(1, 8)]),
    ],
)
def test_what_operators_fix_leaves_the_rest_to_be_measured(
    instances: int | None, threads: int | None, cores: int, expected: list[tuple[int, int]]
) -> None:
    assert core_uses(instances, threads, cores) == tuple(CoreUse(*one) for one in expected)


@pytest.mark.parametrize(
    ("apart", "wide", "expected"),
    [
        ({4: 0.040}, {4: 0.025}, [APART, WIDE]),
        ({4: 0.040}, {4: 0.019}, [WIDE]),
        ({4: 0.040}, {4: 0.021}, [APART, WIDE]),
        ({4: 0.024}, {4: 0.0200}, [APART, WIDE]),
    ],
)
def test_the_other_way_stays_in_the_running_unless_a_lone_caller_would_wait_too_long(
    apart: dict[int, float], wide: dict[int, float], expected: list[CoreUse]
) -> None:
    samples = {
        one: {rows: [seconds] for rows, seconds in curve.items()} for one, curve in ((APART, apart), (WIDE, wide))
    }
    assert best_core_uses(samples) == expected
    assert best_core_uses({WIDE: samples[WIDE]}) == [WIDE]
