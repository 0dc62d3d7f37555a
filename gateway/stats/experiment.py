"""The answer of an A/B test, valid at every look: which variant is better, by how much, and how much longer if unclear.

One treatment is compared with one control. With several treatments, each is compared at alpha divided by their number.
Means are compared by a confidence sequence. Proportions are compared by exact counts while events are rare and by a
confidence sequence from then on, so each of the two has half of alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.stats.means import MeanArm, MeanDifference, is_ready, mean_difference
from gateway.stats.sequential import (
    SAMPLE_RATIO_ALPHA,
    Stage,
    log_e_sample_ratio,
    rate_interval,
    rate_ratio,
    ratio_interval,
    requests_needed,
)


class Metric(StrEnum):
    """What is compared: a share of requests (y is 0 or 1), or the mean of a quantity."""

    PROPORTION = "proportion"
    MEAN = "mean"


class Outcome(StrEnum):
    """Of the treatment. Better and worse are differences that chance does not explain and that may be large enough."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "no meaningful difference"
    """The whole interval lies within the minimum effect, on both sides."""
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Arm:
    """One variant in one stage: count, and sums of the metric y, of a covariate x, and of their squares and product.

    The covariate is known before the variants could make a difference: the stable variant's score for the same row.
    """

    n: int = 0
    y: float = 0.0
    yy: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def __add__(self, other: Arm) -> Arm:
        return Arm(
            self.n + other.n,
            self.y + other.y,
            self.yy + other.yy,
            self.x + other.x,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    @property
    def centred_xx(self) -> float:
        """Sum of squared differences of x from its mean."""
        return max(0.0, self.xx - self.x * self.x / self.n) if self.n else 0.0

    @property
    def centred_xy(self) -> float:
        """Sum of products of the differences of x and of y from their means."""
        return self.xy - self.x * self.y / self.n if self.n else 0.0

    def adjusted(self, theta: float = 0.0, mean_x: float = 0.0) -> MeanArm:
        """Of y - theta (x - mean_x); theta 0 gives y as it is."""
        plain = MeanArm.of_sums(self.n, self.y, self.yy)
        if not theta:
            return plain
        m2 = plain.m2 - 2 * theta * self.centred_xy + theta * theta * self.centred_xx
        return MeanArm(self.n, plain.mean - theta * (self.x / self.n - mean_x), max(0.0, m2)) if self.n else plain


@dataclass(frozen=True, slots=True)
class ExperimentStage:
    """Both arms while the planned share was constant. Raises `ValueError` if they cannot be."""

    share: float
    """The treatment's planned share of both, between 0 and 1."""
    treatment: Arm
    control: Arm

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"the treatment's share lies between 0 and 1, not {self.share}")
        for arm in (self.treatment, self.control):
            if not (arm.n >= 0 and all(map(math.isfinite, (arm.y, arm.yy, arm.x, arm.xx, arm.xy)))):
                raise ValueError(f"an arm's sums are finite, not {arm}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided before the first look. Raises `ValueError` if it cannot be."""

    metric: Metric
    minimum_effect: float
    """The smallest difference that matters, in units of the metric."""
    higher_is_better: bool = True
    alpha: float = 0.05
    """The probability of ever claiming a difference that is none."""
    has_covariate: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.minimum_effect < math.inf):
            raise ValueError(f"the minimum effect is positive and finite, not {self.minimum_effect}")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha lies between 0 and 0.5, not {self.alpha}")


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate between its bounds, which are infinite where nothing bounds it."""

    estimate: float
    low: float
    high: float

    def is_within(self, size: float) -> bool:
        """Whether every value in it is smaller than `size`, with either sign."""
        return -size < self.low and self.high < size


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known at this look."""

    outcome: Outcome
    difference: Interval | None
    """Treatment less control, on the metric's scale; None before there is anything to compare."""
    ratio: Interval | None
    """Treatment over control; None where the control's mean may be 0."""
    is_exact: bool
    """By counts; False: by means, which relies on the central limit theorem."""
    sample_ratio_log_e: float
    requests_needed: int | None = None
    """While undecided: about how many more; None if that cannot be said."""
    days_needed: float | None = None
    variance_reduction: float = 0.0
    """Share of the variance that the covariate explained."""

    @property
    def has_sample_ratio_mismatch(self) -> bool:
        """The split is not as planned: nothing is concluded, whatever the difference."""
        return self.sample_ratio_log_e >= -math.log(SAMPLE_RATIO_ALPHA)


def compare(plan: Plan, stages: Sequence[ExperimentStage], *, requests_per_day: float | None = None) -> Comparison:
    """The answer at this look, from everything counted so far.

    >>> plan = Plan(Metric.PROPORTION, minimum_effect=0.01)
    >>> resume = ExperimentStage(0.5, Arm(2_435, 235, 235), Arm(2_435, 157, 157))
    >>> answer = compare(plan, [resume])
    >>> str(answer.outcome), [round(end, 4) for end in (answer.difference.low, answer.difference.high)]
    ('better', [0.0065, 0.0576])
    """
    mismatch = log_e_sample_ratio(
        ((1 - stage.share, stage.share), (stage.control.n, stage.treatment.n)) for stage in stages
    )
    arms = [(stage.treatment, stage.control) for stage in stages]
    total = sum((arm for pair in arms for arm in pair), Arm())
    plain = [(treatment.adjusted(), control.adjusted()) for treatment, control in arms]
    strata = plain
    if plan.has_covariate and total.n:
        theta, mean_x = _theta(stages), total.x / total.n
        strata = [(treatment.adjusted(theta, mean_x), control.adjusted(theta, mean_x)) for treatment, control in arms]
    is_proportion = plan.metric is Metric.PROPORTION
    found = mean_difference(strata) if is_ready(plain, is_proportion=is_proportion) else None
    if found:
        answer = _by_means(plan, found, total.n, mismatch)
    elif is_proportion:
        answer = _by_counts(plan, stages, total.n, mismatch)
    else:
        answer = Comparison(Outcome.UNDECIDED, None, None, is_exact=False, sample_ratio_log_e=mismatch)
    return _finished(answer, requests_per_day, _reduction(strata, plain))


def _by_means(plan: Plan, found: MeanDifference, total: int, mismatch: float) -> Comparison:
    level = _level(plan)
    half = found.half_width(level)
    difference = Interval(found.difference, found.difference - half, found.difference + half)
    ratio = found.ratio_interval(level)
    size = abs(found.difference)
    return Comparison(
        _outcome(plan, difference.low > 0, difference.high < 0, difference, mismatch),
        difference,
        Interval(found.canary / found.control, *ratio) if ratio else None,
        is_exact=False,
        sample_ratio_log_e=mismatch,
        # Decided as soon as the interval leaves 0, or lies within the minimum effect: whichever takes less.
        requests_needed=found.requests_needed(total, level, max(size, plan.minimum_effect - size)),
    )


def _by_counts(plan: Plan, stages: Sequence[ExperimentStage], total: int, mismatch: float) -> Comparison:
    level = _level(plan)
    counts = [Stage(stage.share, round(stage.treatment.y), round(stage.control.y)) for stage in stages]
    low, high = ratio_interval(counts, level)
    difference = _difference_of_rates(stages, level)
    needed = [requests_needed(counts, total, level / 2, worse=worse) for worse in (True, False)]
    return Comparison(
        _outcome(plan, low > 1, high < 1, difference, mismatch),
        difference,
        Interval(rate_ratio(counts), low, high),
        is_exact=True,
        sample_ratio_log_e=mismatch,
        requests_needed=min((one for one in needed if one is not None), default=None),
    )


def _difference_of_rates(stages: Sequence[ExperimentStage], level: float) -> Interval | None:
    """From an interval for each arm's rate; None if the share changed, when the arms saw different times."""
    if len({stage.share for stage in stages}) != 1:
        return None
    treatment, control = (sum(arms, Arm()) for arms in zip(*((s.treatment, s.control) for s in stages), strict=True))
    if not (treatment.n and control.n):
        return None
    of_treatment, of_control = (rate_interval(round(arm.y), arm.n, level / 2) for arm in (treatment, control))
    estimate = treatment.y / treatment.n - control.y / control.n
    return Interval(estimate, of_treatment[0] - of_control[1], of_treatment[1] - of_control[0])


def _outcome(plan: Plan, is_above: bool, is_below: bool, difference: Interval | None, mismatch: float) -> Outcome:
    if mismatch >= -math.log(SAMPLE_RATIO_ALPHA):
        return Outcome.UNDECIDED
    if difference and difference.is_within(plan.minimum_effect):
        return Outcome.SAME
    if is_above or is_below:
        return Outcome.BETTER if is_above == plan.higher_is_better else Outcome.WORSE
    return Outcome.UNDECIDED


def _level(plan: Plan) -> float:
    return plan.alpha / 2 if plan.metric is Metric.PROPORTION else plan.alpha


def _theta(stages: Sequence[ExperimentStage]) -> float:
    """CUPED (Deng, Xu, Kohavi & Walker 2013): cov(x, y) / var(x), pooled within arms so that no effect enters it."""
    arms = [arm for stage in stages for arm in (stage.treatment, stage.control)]
    squares = math.fsum(arm.centred_xx for arm in arms)
    return math.fsum(arm.centred_xy for arm in arms) / squares if squares else 0.0


def _reduction(adjusted: Sequence[tuple[MeanArm, MeanArm]], plain: Sequence[tuple[MeanArm, MeanArm]]) -> float:
    after, before = (math.fsum(arm.m2 for pair in strata for arm in pair) for strata in (adjusted, plain))
    return max(0.0, 1 - after / before) if before else 0.0


def _finished(comparison: Comparison, requests_per_day: float | None, reduction: float) -> Comparison:
    needed = comparison.requests_needed if comparison.outcome is Outcome.UNDECIDED else None
    if comparison.has_sample_ratio_mismatch:
        needed = None
    days = needed / requests_per_day if needed is not None and requests_per_day else None
    return replace(comparison, requests_needed=needed, days_needed=days, variance_reduction=reduction)
