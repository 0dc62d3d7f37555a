"""The best rate that keeps the target, for any curve."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime import choice, cost_model
from gateway.runtime.choice import HOP_SECONDS, INLINE_SECONDS, RUN_SECONDS, WORTHWHILE, Point, choose

seconds = st.floats(1e-5, 10.0)
curves = st.lists(
    st.builds(
        lambda rows, mean, ratio: Point(rows, mean, mean * ratio), st.integers(1, 1024), seconds, st.floats(1, 20)
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda point: point.rows,
)


@pytest.mark.parametrize("module", [choice, cost_model])
def test_the_examples_in_the_docstrings_are_true(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@given(curve=curves, slo=st.none() | st.floats(1e-5, 100.0))
def test_what_is_chosen_keeps_the_target_and_is_nearly_the_fastest_that_does(
    curve: list[Point], slo: float | None
) -> None:
    chosen = choose(curve, slo=slo)
    assert chosen in curve
    keeping = [point for point in curve if slo is None or point.latency <= slo]
    assert not keeping or chosen in keeping
    candidates = keeping or curve
    assert chosen.rate() >= WORTHWHILE * max(point.rate() for point in candidates)
    # Nothing smaller is as good.
    assert not any(point.rows < chosen.rows and point.rate() > chosen.rate() / WORTHWHILE for point in candidates)


@given(curve=curves, slo=st.floats(1e-5, 100.0), more=st.floats(1.0, 10.0))
def test_a_looser_target_never_costs_more_than_the_tolerance(curve: list[Point], slo: float, more: float) -> None:
    tight, loose = choose(curve, slo=slo), choose(curve, slo=slo * more)
    assert tight.latency > slo or loose.rate() >= WORTHWHILE * tight.rate()


@given(curve=curves, slo=st.none() | st.floats(1e-5, 100.0))
def test_the_order_of_the_points_does_not_matter(curve: list[Point], slo: float | None) -> None:
    assert choose(curve, slo=slo) == choose(curve[::-1], slo=slo)


def test_a_model_that_gains_from_rows_gets_them_until_they_gain_nothing() -> None:
    curve = [Point(rows, 1e-3 + 1e-5 * rows, 2e-3) for rows in (1, 8, 64)]
    assert choose(curve).rows == 64
    flat = [Point(rows, 0.010 * rows, 0.010 * rows) for rows in (1, 2, 4, 8)]
    # The overhead of a run, 0.6 ms, makes one row cost 6 % more and two 3 %.
    assert choose(flat).rows == 4


def test_a_model_that_is_fastest_in_the_middle_stays_there() -> None:
    times = {1: 12.2, 2: 23.3, 4: 45.3, 8: 109.1, 16: 209.0, 32: 427.8}
    assert choose([Point(rows, ms / 1e3, ms / 1e3) for rows, ms in times.items()]).rows == 4


def test_a_run_that_needs_a_thread_must_be_worth_the_hop() -> None:
    inline = Point(64, 0.9 * INLINE_SECONDS, 2e-3)
    on_thread = Point(128, 1.9 * INLINE_SECONDS, 4e-3)
    assert inline.rate() == pytest.approx(64 / (0.9 * INLINE_SECONDS + RUN_SECONDS))
    assert on_thread.rate() == pytest.approx(128 / (1.9 * INLINE_SECONDS + RUN_SECONDS + HOP_SECONDS))
    assert choose([inline, on_thread]) == inline


def test_runs_side_by_side_have_as_many_times_the_rate() -> None:
    assert Point(4, 0.04, 0.05).rate(2) == pytest.approx(2 * Point(4, 0.04, 0.05).rate())


def test_where_nothing_keeps_the_target_the_rate_counts() -> None:
    curve = [Point(1, 0.010, 0.012), Point(8, 0.020, 0.024)]
    assert choose(curve, slo=0.001) == choose(curve)


def test_of_short_runs_the_largest_that_is_nearly_as_fast_is_chosen() -> None:
    curve = [Point(rows, 1e-4 + 1e-5 * rows, 1e-3) for rows in (8, 16, 32, 64)] + [Point(128, 1.9e-3, 2e-3)]
    assert choose(curve).rows == 64
    assert choose([*curve[:-1], Point(128, 1.5e-3, 2e-3)]).rows == 128
