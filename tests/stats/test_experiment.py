from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from gateway.stats.experiment import Arm, Comparison, ExperimentStage, Interval, Metric, Outcome, Plan, compare

ERRORS = Plan(Metric.PROPORTION, minimum_effect=0.01, higher_is_better=False)
REWARD = Plan(Metric.MEAN, minimum_effect=0.05)


def events(n: int, count: int) -> Arm:
    return Arm(n, count, count)


def stage(treatment: Arm, control: Arm, share: float = 0.5) -> ExperimentStage:
    return ExperimentStage(share, treatment, control)


def values(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64] | None = None) -> Arm:
    x = np.zeros_like(y) if x is None else x
    return Arm(len(y), *(float(one.sum()) for one in (y, y * y, x, x * x, x * y)))


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


@pytest.mark.parametrize(
    ("treatment", "control", "outcome"),
    [
        (700, 500, Outcome.WORSE),
        (500, 700, Outcome.BETTER),
        (500, 510, Outcome.UNDECIDED),
    ],
)
def test_proportions_that_are_not_rare(treatment: int, control: int, outcome: Outcome) -> None:
    answer = compare(ERRORS, [stage(events(5_000, treatment), events(5_000, control))])

    assert answer.outcome is outcome
    assert not answer.is_exact
    assert known(answer.difference).estimate == pytest.approx((treatment - control) / 5_000)
    assert known(answer.ratio).estimate == pytest.approx(treatment / control)


def test_an_interval_within_the_minimum_effect_is_no_meaningful_difference() -> None:
    answer = compare(ERRORS, [stage(events(200_000, 20_000), events(200_000, 20_100))])

    assert answer.outcome is Outcome.SAME
    assert known(answer.difference).is_within(0.01)
    assert answer.requests_needed is None


def test_a_difference_too_small_to_matter_is_none_however_certain() -> None:
    answer = compare(ERRORS, [stage(events(2_000_000, 200_000), events(2_000_000, 210_000))])

    assert known(answer.difference).high < 0
    assert answer.outcome is Outcome.SAME


@pytest.mark.parametrize(
    ("treatment", "control", "outcome"), [(25, 2, Outcome.WORSE), (2, 25, Outcome.BETTER), (9, 6, Outcome.UNDECIDED)]
)
def test_rare_proportions_are_compared_by_exact_counts(treatment: int, control: int, outcome: Outcome) -> None:
    plan = Plan(Metric.PROPORTION, minimum_effect=0.0005, higher_is_better=False)

    answer = compare(plan, [stage(events(20_000, treatment), events(20_000, control))])

    assert answer.is_exact
    assert answer.outcome is outcome
    assert known(answer.ratio).low < treatment / control < known(answer.ratio).high
    assert known(answer.difference).low < (treatment - control) / 20_000 < known(answer.difference).high


def test_two_services_without_errors_do_not_differ_by_more_than_their_bounds() -> None:
    answer = compare(ERRORS, [stage(events(5_000, 0), events(5_000, 0))])

    assert answer.is_exact
    assert answer.outcome is Outcome.SAME


def test_rare_events_under_several_shares_have_a_ratio_but_no_difference() -> None:
    answer = compare(ERRORS, [stage(events(100, 4), events(900, 1), 0.1), stage(events(500, 20), events(500, 1))])

    assert answer.outcome is Outcome.WORSE
    assert answer.difference is None


def test_means() -> None:
    rng = np.random.default_rng(1)
    control, treatment = rng.normal(1.0, 1.0, 8_000), rng.normal(1.2, 1.0, 8_000)

    answer = compare(REWARD, [stage(values(treatment), values(control))])

    assert answer.outcome is Outcome.BETTER
    assert known(answer.difference).low < 0.2 < known(answer.difference).high
    assert known(answer.ratio).low < 1.2 < known(answer.ratio).high
    worse = Plan(Metric.MEAN, minimum_effect=0.05, higher_is_better=False)
    assert compare(worse, [stage(values(treatment), values(control))]).outcome is Outcome.WORSE


@pytest.mark.parametrize("stages", [[], [stage(Arm(), Arm())], [stage(values(np.ones(50)), values(np.ones(50)))]])
def test_too_few_values_decide_nothing(stages: list[ExperimentStage]) -> None:
    answer = compare(REWARD, stages, requests_per_day=100.0)

    assert answer.outcome is Outcome.UNDECIDED
    assert (answer.difference, answer.ratio, answer.requests_needed, answer.days_needed) == (None, None, None, None)


def test_nothing_counted_is_undecided_for_proportions() -> None:
    answer = compare(ERRORS, [])

    assert (answer.outcome, answer.difference) == (Outcome.UNDECIDED, None)
    assert compare(ERRORS, [stage(Arm(), Arm())]).outcome is Outcome.UNDECIDED


def test_a_split_that_was_not_planned_decides_nothing() -> None:
    answer = compare(ERRORS, [stage(events(5_400, 1_000), events(4_600, 300))], requests_per_day=100.0)

    assert answer.has_sample_ratio_mismatch
    assert answer.outcome is Outcome.UNDECIDED
    assert answer.requests_needed is None
    assert known(answer.difference).low > 0


def test_the_covariate_explains_variance_and_moves_no_effect() -> None:
    rng = np.random.default_rng(22)
    covered = Plan(Metric.MEAN, minimum_effect=0.02, has_covariate=True)
    scores = rng.normal(5.0, 1.0, (2, 4_000))
    control, treatment = scores + rng.normal(0, 0.5, (2, 4_000)) + np.array([[0.0], [0.06]])
    stages = [stage(values(treatment, scores[1]), values(control, scores[0]))]

    plain, adjusted = compare(replace(covered, has_covariate=False), stages), compare(covered, stages)

    assert plain.outcome is Outcome.UNDECIDED
    assert adjusted.outcome is Outcome.BETTER
    assert adjusted.variance_reduction == pytest.approx(0.8, abs=0.02)
    assert plain.variance_reduction == 0.0
    assert known(adjusted.difference).low < 0.06 < known(adjusted.difference).high
    assert _width(adjusted) == pytest.approx(_width(plain) * math.sqrt(0.2), rel=0.05)


def test_the_adjusted_answer_is_that_of_the_adjusted_values() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(3.0, 2.0, (2, 600))
    y = 0.7 * x + rng.normal(size=(2, 600))
    centred = [(xs - xs.mean(), ys - ys.mean()) for xs, ys in zip(x, y, strict=True)]
    theta = sum((xs * ys).sum() for xs, ys in centred) / sum((xs * xs).sum() for xs, _ in centred)
    adjusted = y - theta * (x - x.mean())

    by_sums = compare(
        Plan(Metric.MEAN, minimum_effect=0.05, has_covariate=True), [stage(values(y[0], x[0]), values(y[1], x[1]))]
    )
    by_values = compare(REWARD, [stage(values(adjusted[0]), values(adjusted[1]))])

    for ours, theirs in ((by_sums.difference, by_values.difference), (by_sums.ratio, by_values.ratio)):
        assert known(ours).low == pytest.approx(known(theirs).low)
        assert known(ours).high == pytest.approx(known(theirs).high)


def test_a_covariate_that_never_varies_explains_nothing() -> None:
    y = np.random.default_rng(4).normal(size=1_000)
    plan = Plan(Metric.MEAN, minimum_effect=0.05, has_covariate=True)

    constant = compare(plan, [stage(values(y[:500], np.full(500, 2.0)), values(y[500:], np.full(500, 2.0)))])

    assert constant.difference == compare(REWARD, [stage(values(y[:500]), values(y[500:]))]).difference


def test_parts_of_an_arm_add_up() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 300))

    both = values(y[:100], x[:100]) + values(y[100:], x[100:])

    whole = values(y, x)
    assert both.n == whole.n
    assert (both.y, both.yy, both.x, both.xx, both.xy) == pytest.approx(
        (whole.y, whole.yy, whole.x, whole.xx, whole.xy)
    )


@pytest.mark.parametrize("difference", [0.0, 0.03])
def test_how_much_longer_is_about_what_it_then_takes(difference: float) -> None:
    rng = np.random.default_rng(6)
    begun = compare(ERRORS, [_equal_halves(4_000, 0.10, difference)], requests_per_day=1_000.0)
    assert begun.outcome is Outcome.UNDECIDED
    assert begun.requests_needed is not None
    assert begun.days_needed == pytest.approx(begun.requests_needed / 1_000)

    needed = []
    for _ in range(40):
        n, arms = 4_000, [events(2_000, round(2_000 * (0.10 + difference))), events(2_000, 200)]
        while compare(ERRORS, [stage(arms[0], arms[1])]).outcome is Outcome.UNDECIDED:
            arms = [arms[0] + events(500, rng.binomial(500, 0.10 + difference)), arms[1] + _drawn(rng)]
            n += 1_000
        needed.append(n - 4_000)
    assert 0.6 * np.median(needed) < begun.requests_needed < 2 * np.median(needed)


def test_without_a_rate_there_are_no_days() -> None:
    answer = compare(ERRORS, [_equal_halves(4_000, 0.10, 0.0)])

    assert answer.requests_needed
    assert answer.days_needed is None


@pytest.mark.parametrize("rate", [0.002, 0.2])
def test_peeking_at_equal_variants_claims_few_differences(rate: float) -> None:
    """Ten looks at 60 tests, at most 5 % nominally."""
    rng = np.random.default_rng(7)
    plan = Plan(Metric.PROPORTION, minimum_effect=1e-6)
    claimed = 0
    for _ in range(60):
        arms = [Arm(), Arm()]
        for _ in range(10):
            arms = [arm + events(1_000, rng.binomial(1_000, rate)) for arm in arms]
            if compare(plan, [stage(arms[0], arms[1])]).outcome in {Outcome.BETTER, Outcome.WORSE}:
                claimed += 1
                break
    assert claimed <= 3


@pytest.mark.parametrize("effect", [0.0, -0.1, math.nan, math.inf])
def test_a_minimum_effect_is_positive(effect: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Plan(Metric.MEAN, minimum_effect=effect)


@pytest.mark.parametrize("alpha", [0.0, 0.5, math.nan])
def test_alpha_is_a_small_probability(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        Plan(Metric.MEAN, minimum_effect=0.1, alpha=alpha)


@pytest.mark.parametrize("share", [0.0, 1.0, 50.0, math.nan])
def test_both_variants_have_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ExperimentStage(share, Arm(), Arm())


@pytest.mark.parametrize("arm", [Arm(-1), Arm(10, math.nan), Arm(10, 1.0, math.inf)])
def test_sums_are_finite(arm: Arm) -> None:
    with pytest.raises(ValueError, match="sums are finite"):
        ExperimentStage(0.5, Arm(), arm)


def test_more_events_than_requests_are_no_proportion() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        compare(ERRORS, [stage(events(2, 3), events(2, 1))])


def _equal_halves(n: int, rate: float, difference: float) -> ExperimentStage:
    half = n // 2
    return stage(events(half, round(half * (rate + difference))), events(half, round(half * rate)))


def _drawn(rng: np.random.Generator) -> Arm:
    return events(500, rng.binomial(500, 0.10))


def _width(answer: Comparison) -> float:
    return known(answer.difference).high - known(answer.difference).low
