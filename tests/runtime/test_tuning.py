"""The batch size with the best rate is found, whatever shape the curve has, and the search ends."""

from __future__ import annotations

import threading

import pytest

from gateway.runtime.tuning import BUDGET_SECONDS, REPEATS, Plan, plan_alone, plan_side_by_side


class Curve:
    """A model that takes as long as a table says, and remembers what it ran."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.ran: list[int] = []

    def __call__(self, rows: int) -> float | None:
        self.ran.append(rows)
        return self.seconds[rows]


def test_a_model_that_gains_from_rows_runs_as_many_as_it_may() -> None:
    curve = Curve({rows: 1e-4 + 1e-6 * rows for rows in (1, 2, 4, 8, 16, 32, 48)})
    plan = plan_alone(curve, 48)
    assert plan.batch_rows == 48
    assert plan.seconds == pytest.approx(1.48e-4)


def test_a_model_that_is_fastest_in_the_middle_stays_there() -> None:
    curve = Curve({1: 8e-3, 2: 12e-3, 4: 20e-3, 8: 45e-3, 16: 96e-3, 32: 260e-3, 64: 1.0})
    assert plan_alone(curve, 64).batch_rows == 4
    # 32 rows are hopeless at 123 a second, so nobody waits for 64.
    assert max(curve.ran) == 32


def test_among_sizes_that_are_nearly_as_good_the_largest_is_chosen() -> None:
    curve = Curve({1: 1e-3, 2: 2.04e-3, 4: 4.1e-3, 8: 10e-3})
    assert plan_alone(curve, 8).batch_rows == 4


def test_a_slow_model_is_not_tried_for_ever() -> None:
    curve = Curve({2**power: 0.4 * 2**power for power in range(7)})
    assert plan_alone(curve, 64).batch_rows == 2
    assert sum(curve.seconds[rows] for rows in curve.ran) < (1 + 2 * REPEATS) * BUDGET_SECONDS


def test_one_slow_run_of_a_size_does_not_count() -> None:
    times = iter([9e-3, 1e-3, 1e-3, 1e-3, 50e-3, 1.1e-3, 1.2e-3])
    assert plan_alone(lambda _rows: next(times), 2).batch_rows == 2


def test_of_a_model_that_refuses_made_up_values_nothing_is_known() -> None:
    assert plan_alone(lambda _rows: None, 64) == Plan(64, 0.0)


def test_a_model_without_batches_runs_one_by_one() -> None:
    assert plan_alone(lambda _rows: 1e-3, 1).batch_rows == 1


def test_runs_side_by_side_are_measured_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)

    def run(_rows: int) -> float:
        # Would never return if the runs came one after the other.
        both.wait()
        return 1e-3

    plan = plan_side_by_side(run, Plan(4, 1e-3), 2)
    assert (plan.batch_rows, plan.runs) == (4, 2)
    assert plan.rate == pytest.approx(8 / plan.seconds)


@pytest.mark.parametrize(
    ("apart", "wide", "is_better"),
    [
        (Plan(2, 0.020, 2), Plan(4, 0.021), True),
        (Plan(2, 0.020, 2), Plan(4, 0.0195), True),
        (Plan(2, 0.020, 2), Plan(4, 0.015), False),
        # A lone caller would wait four times as long.
        (Plan(8, 0.100, 16), Plan(8, 0.025), False),
    ],
)
def test_side_by_side_must_be_as_fast_and_not_much_later(apart: Plan, wide: Plan, *, is_better: bool) -> None:
    assert apart.is_better(wide) is is_better
