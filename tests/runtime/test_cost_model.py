"""What a run will take is learned from runs, whatever their sizes and however busy the machine is."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.cost_model import CostModel


def line(rows: int) -> float:
    return 1e-3 + 2e-4 * rows


def test_nothing_is_known_before_the_first_run() -> None:
    cost = CostModel()
    assert cost.predict(1) == cost.predict_p99(8) == cost.predict_cpu(64) == math.inf
    assert not cost.knows(1)
    assert cost.classes == []


@given(sizes=st.lists(st.integers(1, 256), min_size=2, max_size=60))
def test_a_line_is_found_from_any_two_sizes_and_holds_beyond_them(sizes: list[int]) -> None:
    cost = CostModel()
    for rows in sizes:
        cost.observe(rows, line(rows))
    for rows in sizes:
        assert cost.predict(rows) == pytest.approx(line(rows), rel=0.25)
    if len({rows.bit_length() for rows in sizes}) > 1:
        assert 0 < cost.predict(1000) < 3 * line(1000)


def test_a_curve_that_bends_is_followed() -> None:
    bent = {1: 0.012, 4: 0.045, 16: 0.209, 64: 1.9}
    cost = CostModel()
    for _ in range(100):
        for rows, seconds in bent.items():
            cost.observe(rows, seconds)
    for rows, seconds in bent.items():
        assert cost.predict(rows) == pytest.approx(seconds, rel=0.02)
    assert bent[4] < cost.predict(8) < bent[64]


def test_a_size_that_is_rarely_run_slows_down_with_the_machine() -> None:
    cost = CostModel()
    for rows in (1, 4, 16):
        cost.warm(rows, line(rows))
    for _ in range(200):
        cost.observe(16, 2 * line(16))
    assert cost.predict(16) == pytest.approx(2 * line(16), rel=0.05)
    assert cost.predict(4) == pytest.approx(2 * line(4), rel=0.35)
    for _ in range(400):
        cost.observe(16, line(16))
    assert cost.predict(4) == pytest.approx(line(4), rel=0.35)


def test_what_was_measured_at_load_gives_way_to_traffic() -> None:
    cost = CostModel()
    cost.warm(4, 0.004)
    cost.warm(16, 0.016)
    for _ in range(60):
        cost.observe(4, 0.004)
        cost.observe(16, 0.040)
    assert cost.predict(16) / cost.predict(4) == pytest.approx(10, rel=0.1)


def test_a_hiccup_hardly_moves_the_mean_and_moves_the_tail() -> None:
    cost = CostModel()
    for _ in range(100):
        cost.observe(8, 0.001)
    before = cost.predict_p99(8) / cost.predict(8)
    cost.observe(8, 1.0)
    assert cost.predict(8) < 0.0011
    assert cost.predict_p99(8) / cost.predict(8) > before


def test_the_99th_percentile_is_approached_from_both_sides() -> None:
    random_ = random.Random(3)
    cost = CostModel()
    for _ in range(20_000):
        cost.observe(8, 1e-3 * (5.0 if random_.random() < 0.03 else 1.0))
    assert cost.predict_p99(8) == pytest.approx(5e-3, rel=0.4)
    for _ in range(20_000):
        cost.observe(8, 1e-3 * random_.uniform(0.99, 1.01))
    assert cost.predict_p99(8) == pytest.approx(1e-3, rel=0.1)


def test_a_guess_predicts_the_same_and_is_soon_overruled() -> None:
    cost = CostModel()
    for rows in (1, 3, 16, 300):
        for _ in range(100):
            cost.observe(rows, line(rows), line(rows) / 2)
    guess = cost.guess()
    for rows in (1, 2, 3, 16, 100, 300):
        assert guess.predict(rows) == pytest.approx(cost.predict(rows))
        assert guess.predict_p99(rows) == pytest.approx(cost.predict_p99(rows))
        assert guess.predict_cpu(rows) == math.inf
    for _ in range(20):
        guess.observe(3, 10 * line(3))
    assert guess.predict(3) == pytest.approx(10 * line(3), rel=0.1)
    assert cost.predict(3) == pytest.approx(line(3), rel=0.01)
    assert CostModel().guess().predict(1) == math.inf


def test_zeros_do_not_say_that_real_values_are_as_fast() -> None:
    cost = CostModel()
    cost.warm(1, 1e-5)
    assert cost.predict(1) == pytest.approx(1e-5)
    assert cost.predict_cpu(1) == math.inf
    cost.observe(1, 0.5, 0.5)
    assert cost.predict_cpu(1) > 0.1


def test_waiting_for_the_interpreter_is_no_cpu_time() -> None:
    cost = CostModel()
    for _ in range(50):
        cost.observe(8, 0.010, 0.001)
    assert cost.predict(8) == pytest.approx(0.010, rel=0.1)
    assert cost.predict_cpu(8) == pytest.approx(0.001)


@given(runs=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=80))
def test_whatever_is_observed_predictions_are_positive_and_finite(runs: list[tuple[int, float, float]]) -> None:
    cost = CostModel()
    for rows, seconds, cpu in runs:
        cost.observe(rows, seconds, cpu)
        for other in (1, 7, rows, 10**6):
            assert 0 < cost.predict(other) < math.inf
            assert cost.predict(other) <= cost.predict_p99(other) < math.inf
    assert len(cost.classes) <= 20


def test_sizes_that_are_not_run_stay_what_they_were_however_long_another_is() -> None:
    rng = random.Random(1)
    cost = CostModel()
    for rows in (1, 8, 64, 256):
        cost.warm(rows, 1e-4 + 1e-5 * rows)
    for _ in range(20_000):
        cost.observe(58, (1e-4 + 1e-5 * 58) * rng.lognormvariate(-0.08, 0.4))
    assert cost.predict(58) == pytest.approx(1e-4 + 1e-5 * 58, rel=0.3)
    assert cost.predict(1) == pytest.approx(1e-4 + 1e-5, rel=0.3)
    assert cost.predict(256) == pytest.approx(1e-4 + 1e-5 * 256, rel=0.3)
