"""The batch size with the best rate is found, whatever shape the curve has, and the search ends."""

from __future__ import annotations

import pytest

from gateway.runtime.tuning import BUDGET_SECONDS, REPEATS, best_batch_rows


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
    rows, seconds = best_batch_rows(curve, 48)
    assert rows == 48
    assert seconds == pytest.approx(1.48e-4)


def test_a_model_that_is_fastest_in_the_middle_stays_there() -> None:
    curve = Curve({1: 8e-3, 2: 12e-3, 4: 20e-3, 8: 45e-3, 16: 96e-3, 32: 260e-3, 64: 1.0})
    assert best_batch_rows(curve, 64)[0] == 4
    # 32 rows are hopeless at 123 a second, so nobody waits for 64.
    assert max(curve.ran) == 32


def test_among_sizes_that_are_nearly_as_good_the_largest_is_chosen() -> None:
    curve = Curve({1: 1e-3, 2: 2.04e-3, 4: 4.1e-3, 8: 10e-3})
    assert best_batch_rows(curve, 8)[0] == 4


def test_a_slow_model_is_not_tried_for_ever() -> None:
    curve = Curve({2**power: 0.4 * 2**power for power in range(7)})
    assert best_batch_rows(curve, 64)[0] == 2
    assert sum(curve.seconds[rows] for rows in curve.ran) < (1 + 2 * REPEATS) * BUDGET_SECONDS


def test_one_slow_run_of_a_size_does_not_count() -> None:
    times = iter([9e-3, 1e-3, 1e-3, 1e-3, 50e-3, 1.1e-3, 1.2e-3])
    assert best_batch_rows(lambda _rows: next(times), 2)[0] == 2


def test_of_a_model_that_refuses_made_up_values_nothing_is_known() -> None:
    assert best_batch_rows(lambda _rows: None, 64) == (64, None)


def test_a_model_without_batches_runs_one_by_one() -> None:
    assert best_batch_rows(lambda _rows: 1e-3, 1)[0] == 1
