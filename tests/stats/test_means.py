from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.stats.means import MeanArm, MeanDifference, is_ready, mean_difference

finite = st.floats(-1e6, 1e6)
values = st.lists(finite, min_size=0, max_size=40)


def arms(rng: np.random.Generator, n: int, weight: float, canary: float, control: float) -> tuple[MeanArm, MeanArm]:
    """Proportions of `n` requests."""
    canaries = int(rng.binomial(n, weight))
    return (
        MeanArm.of_counts(canaries, int(rng.binomial(canaries, canary))),
        MeanArm.of_counts(n - canaries, int(rng.binomial(n - canaries, control))),
    )


@given(values, values)
@settings(max_examples=60, deadline=None)
def test_parts_add_up_to_the_whole(left: list[float], right: list[float]) -> None:
    both = MeanArm.of_values(left) + MeanArm.of_values(right)

    whole = MeanArm.of_values(left + right)
    assert both.n == whole.n
    assert both.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
    assert both.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-3)


def test_variance_is_that_of_numpy() -> None:
    numbers = np.random.default_rng(1).lognormal(size=1_000)

    assert MeanArm.of_values(numbers).variance == pytest.approx(numbers.var(ddof=1))
    sums = MeanArm.of_sums(1_000, float(numbers.sum()), float((numbers**2).sum()))
    assert sums.variance == pytest.approx(numbers.var(ddof=1))
    assert MeanArm.of_counts(10, 4).variance == pytest.approx(np.var([1] * 4 + [0] * 6, ddof=1))


def test_nothing_and_one_value_have_no_variance() -> None:
    assert MeanArm.of_values([]) == MeanArm.of_sums(0, 0.0, 0.0) == MeanArm() + MeanArm()
    assert MeanArm.of_values([7.0]).variance == 0.0


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("n", [500.0, 20_000.0])
def test_half_widths_are_those_of_the_formula(alpha: float, n: float) -> None:
    found = MeanDifference(0.5, 0.03, 0.4, 0.04, n)
    scale = 0.05**2 * n
    for one_sided, level in ((False, alpha), (True, 2 * alpha)):
        rho2 = (-2 * math.log(level) + math.log(-2 * math.log(level) + 1)) / 5_000
        root = math.sqrt(n * rho2 + 1)
        logarithm = math.log(1 + root / (2 * alpha)) if one_sided else math.log(root / alpha)
        expected = math.sqrt(scale * 2 * (n * rho2 + 1) / (n * math.sqrt(rho2)) ** 2 * logarithm)
        assert found.half_width(alpha, one_sided=one_sided) == pytest.approx(expected)


@given(st.floats(0.001, 0.3), st.floats(100, 1e7), st.sampled_from([None, True, False]))
@settings(max_examples=60, deadline=None)
def test_evidence_reaches_its_bound_where_the_interval_leaves_the_null(
    alpha: float, n: float, worse: bool | None
) -> None:
    null = 0.2
    at_zero = MeanDifference(null, 0.3, 0.0, 0.4, n)
    half = at_zero.half_width(alpha, one_sided=worse is not None)

    there = MeanDifference(null - half if worse is False else null + half, 0.3, 0.0, 0.4, n)

    assert there.log_e(alpha, null, worse=worse) == pytest.approx(-math.log(alpha), rel=1e-6)


def test_one_sided_evidence_is_none_on_the_other_side() -> None:
    found = MeanDifference(0.5, 0.01, 0.4, 0.01, 1_000)

    assert found.log_e(0.05, worse=True) > 0
    assert found.log_e(0.05, worse=False) == -math.inf
    same = MeanDifference(0.4, 0.01, 0.4, 0.01, 1_000)
    assert same.log_e(0.05, worse=True) == same.log_e(0.05, worse=False) == -math.inf


def test_values_that_never_vary_are_certain() -> None:
    assert MeanDifference(1.0, 0.0, 1.0, 0.0, 1_000).log_e(0.05) < 0
    assert MeanDifference(2.0, 0.0, 1.0, 0.0, 1_000).log_e(0.05) == math.inf
    assert MeanDifference(2.0, 0.0, 1.0, 0.0, 1_000).log_e(0.05, worse=True) == math.inf
    assert MeanDifference(2.0, 0.0, 1.0, 0.0, 1_000).log_e(0.05, worse=False) == -math.inf
    assert MeanDifference(2.0, 0.0, 1.0, 0.0, 1_000).ratio_interval(0.05) == (2.0, 2.0)
    assert MeanDifference(2.0, 0.0, 0.0, 0.0, 1_000).ratio_interval(0.05) is None


def test_a_change_of_weights_during_an_incident_is_no_difference() -> None:
    """While nothing failed the canary had 50 %, and 5 % while 10 % of everything failed."""
    calm = (MeanArm.of_counts(10_000, 100), MeanArm.of_counts(10_000, 100))
    incident = (MeanArm.of_counts(1_000, 100), MeanArm.of_counts(19_000, 1_900))

    together = mean_difference([(calm[0] + incident[0], calm[1] + incident[1])])
    found = mean_difference([calm, incident])

    assert together is not None
    assert together.difference < -4 * together.standard_error
    assert found is not None
    assert found.difference == pytest.approx(0, abs=1e-12)


def test_a_split_of_one_stage_changes_next_to_nothing() -> None:
    rng = np.random.default_rng(2)
    halves = [arms(rng, 20_000, 0.3, 0.2, 0.2) for _ in range(2)]

    split = mean_difference(halves)
    whole = mean_difference([(halves[0][0] + halves[1][0], halves[0][1] + halves[1][1])])

    assert split is not None
    assert whole is not None
    assert split.difference == pytest.approx(whole.difference, abs=2e-4)
    assert split.half_width(0.05) == pytest.approx(whole.half_width(0.05), rel=0.01)


def test_without_two_values_on_both_sides_there_is_no_difference() -> None:
    assert mean_difference([]) is None
    assert mean_difference([(MeanArm.of_values([1.0]), MeanArm.of_values([1.0, 2.0]))]) is None


@pytest.mark.parametrize(
    ("canary", "control", "is_proportion", "expected"),
    [
        (MeanArm(200, 1.0, 1.0), MeanArm(200, 1.0, 1.0), False, True),
        (MeanArm(199, 1.0, 1.0), MeanArm(10_000, 1.0, 1.0), False, False),
        (MeanArm.of_counts(1_000, 30), MeanArm.of_counts(1_000, 30), True, True),
        (MeanArm.of_counts(1_000, 29), MeanArm.of_counts(1_000, 30), True, False),
        (MeanArm.of_counts(1_000, 971), MeanArm.of_counts(1_000, 970), True, False),
    ],
)
def test_when_a_confidence_sequence_may_begin(
    canary: MeanArm, control: MeanArm, is_proportion: bool, expected: bool
) -> None:
    assert is_ready([(canary, control)], is_proportion=is_proportion) is expected
    assert not is_ready([])


def test_the_ratio_excludes_1_with_the_difference_excluding_0() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        found = mean_difference([arms(rng, 3_000, 0.4, 0.22, 0.2)])
        assert found is not None
        ratio = found.ratio_interval(0.5)
        assert ratio is not None
        assert (ratio[0] <= 1 <= ratio[1]) == (abs(found.difference) <= found.half_width(0.5))
        assert ratio[0] < found.canary / found.control < ratio[1]


def test_there_is_no_ratio_to_what_may_be_0() -> None:
    assert MeanDifference(0.5, 0.1, 0.01, 0.1, 1_000).ratio_interval(0.05) is None


def test_the_forecast_is_where_the_half_width_gets_there() -> None:
    found = MeanDifference(0.01, 0.003, 0.0, 0.004, 4_000)

    needed = found.requests_needed(10_000, 0.05, 0.004, one_sided=True)

    assert needed is not None
    factor = 1 + needed / 10_000
    root = math.sqrt(factor)
    then = MeanDifference(0.01, 0.003 / root, 0.0, 0.004 / root, 4_000 * factor)
    assert then.half_width(0.05, one_sided=True) == pytest.approx(0.004, rel=1e-3)
    assert found.requests_needed(10_000, 0.05, 0.0) is None
    assert found.requests_needed(10_000, 0.05, 1e-12) is None
    assert found.requests_needed(10_000, 0.05, 10.0) == 0


@pytest.mark.parametrize("rate", [0.2, 0.03])
def test_peeking_at_equal_proportions_raises_few_alarms(rate: float) -> None:
    """A ramp, twelve looks in each stage, 400 runs: at most 5 % nominally."""
    rng = np.random.default_rng(4)
    alarms = sum(_is_alarmed(rng, rate) for _ in range(400))
    assert alarms <= 20


def _is_alarmed(rng: np.random.Generator, rate: float) -> bool:
    strata = []
    for weight in (0.05, 0.25, 0.5):
        strata.append((MeanArm(), MeanArm()))
        for _ in range(12):
            canary, control = arms(rng, 1_000, weight, rate, rate)
            strata[-1] = (strata[-1][0] + canary, strata[-1][1] + control)
            found = mean_difference(strata) if is_ready(strata, is_proportion=True) else None
            if found and abs(found.difference) > found.half_width(0.05):
                return True
    return False


def test_two_points_of_accuracy_are_found_within_forty_thousand_requests() -> None:
    """0.83 against 0.81 at a weight of 10 %, at 5 % two-sided: the median of 60 runs."""
    rng = np.random.default_rng(5)
    found_after = []
    for _ in range(60):
        pair, n = (MeanArm(), MeanArm()), 0
        while n < 120_000:
            more = arms(rng, 1_000, 0.1, 0.81, 0.83)
            pair, n = (pair[0] + more[0], pair[1] + more[1]), n + 1_000
            found = mean_difference([pair]) if is_ready([pair], is_proportion=True) else None
            if found and abs(found.difference) > found.half_width(0.05):
                break
        found_after.append(n)
    assert 20_000 < np.median(found_after) < 40_000
