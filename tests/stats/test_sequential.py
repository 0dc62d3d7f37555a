from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from gateway.stats.sequential import (
    EProcess,
    FailureRun,
    Stage,
    log_e,
    log_e_batch,
    log_e_rate,
    log_e_sample_ratio,
    log_mean_e,
    rate_interval,
    rate_ratio,
    ratio_interval,
    requests_needed,
    trials_needed,
)

WEIGHTS = (0.01, 0.05, 0.25, 0.5)
counts = st.integers(0, 300)
weights = st.floats(0.001, 0.999)
stages = st.lists(st.builds(Stage, weights, counts, counts), max_size=5)


def share(weight: float, rho: float) -> float:
    return weight * rho / (weight * rho + 1 - weight)


def log_e_by_definition(stages: list[Stage], rho0: float, *, worse: bool) -> float:
    """The formula as it is written, one term at a time."""
    grid = [k / 60 * math.log(20) for k in range(1, 61)]
    prior = [math.exp(-(g**2) / (2 * math.log(2) ** 2)) for g in grid]
    terms = []
    for g, mass in zip(grid, prior, strict=True):
        rho = rho0 * math.exp(g if worse else -g)
        terms.append(math.log(mass / sum(prior)))
        for stage in stages:
            p0, p = share(stage.weight, rho0), share(stage.weight, rho)
            terms[-1] += stage.canary * math.log(p / p0) + stage.control * math.log((1 - p) / (1 - p0))
    return float(special.logsumexp(terms))


@given(stages, st.sampled_from([0.5, 1.0, 1.5]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_evidence_is_that_of_the_formula(stages: list[Stage], rho0: float, worse: bool) -> None:
    assert log_e(stages, rho0, worse=worse) == pytest.approx(
        log_e_by_definition(stages, rho0, worse=worse), rel=1e-9, abs=1e-9
    )


@given(weights, counts, counts, st.sampled_from([0.5, 1.0, 1.5]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_under_the_null_the_next_event_changes_nothing_on_average(
    weight: float, canary: int, control: int, rho0: float, worse: bool
) -> None:
    def e_after(more_canary: int, more_control: int) -> float:
        now = log_e([Stage(weight, canary, control)], rho0, worse=worse)
        after = log_e([Stage(weight, canary + more_canary, control + more_control)], rho0, worse=worse)
        return math.exp(after - now)

    p0 = share(weight, rho0)
    assert p0 * e_after(1, 0) + (1 - p0) * e_after(0, 1) == pytest.approx(1)
    # On the null's side of rho0 it falls, on the other it grows.
    for rho, sign in ((rho0 / 2, -1), (rho0 * 2, 1)):
        p = share(weight, rho)
        assert ((p * e_after(1, 0) + (1 - p) * e_after(0, 1)) - 1) * (sign if worse else -sign) > 0


@given(stages, st.data())
@settings(max_examples=60, deadline=None)
def test_a_stage_may_be_counted_in_parts_and_in_any_order(stages: list[Stage], data: st.DataObject) -> None:
    parts = []
    for stage in stages:
        canary, control = (data.draw(st.integers(0, count)) for count in (stage.canary, stage.control))
        parts.append(Stage(stage.weight, canary, control))
        parts.append(Stage(stage.weight, stage.canary - canary, stage.control - control))

    assert log_e(data.draw(st.permutations(parts))) == pytest.approx(log_e(stages), rel=1e-9, abs=1e-9)


@given(stages)
@settings(max_examples=40, deadline=None)
def test_swapping_the_arms_swaps_worse_for_better(stages: list[Stage]) -> None:
    swapped = [Stage(1 - stage.weight, stage.control, stage.canary) for stage in stages]

    assert log_e(swapped, 1 / 1.5, worse=False) == pytest.approx(log_e(stages, 1.5), rel=1e-6, abs=1e-6)


def test_many_histories_at_once_are_each_what_they_are_alone() -> None:
    rng = np.random.default_rng(1)
    canary, control = rng.integers(0, 50, (2, 3, 4, len(WEIGHTS)))

    batch = log_e_batch(WEIGHTS, canary, control, 1.5, worse=False)

    assert batch.shape == (3, 4)
    alone = [Stage(*one) for one in zip(WEIGHTS, canary[2, 1].tolist(), control[2, 1].tolist(), strict=True)]
    assert batch[2, 1] == pytest.approx(log_e(alone, 1.5, worse=False))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_a_control_nothing_is_learnt(weight: float) -> None:
    assert log_e([Stage(weight, 50, 0)]) == pytest.approx(0)
    assert log_e([Stage(weight, 50, 7), Stage(0.05, 5, 1)]) == log_e([Stage(0.05, 5, 1)])
    assert requests_needed([Stage(weight, 50, 0)], 1_000, 0.01) is None


def test_an_entirely_broken_canary_at_5_percent_is_known_after_five_errors() -> None:
    # The control errs once in 200 requests: 5 canary requests come with 95 of the control.
    evidence = [math.exp(log_e([Stage(0.05, n, round(n * 19 * 0.005))])) for n in (4, 5)]

    assert evidence[0] < 100 < evidence[1]


def test_counts_beyond_any_traffic_stay_finite() -> None:
    assert math.isfinite(log_e([Stage(0.05, 10**15, 19 * 10**15)]))
    assert log_e([Stage(0.05, 10**12, 10**12)]) > 1e11


@pytest.mark.parametrize("weight", [-0.1, 5.0, math.nan, math.inf])
def test_a_weight_is_a_share(weight: float) -> None:
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Stage(weight, 1, 1)


@pytest.mark.parametrize("counts", [(-1, 0), (0, -1)])
def test_counts_are_not_negative(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Stage(0.5, *counts)


@pytest.mark.parametrize("rho0", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_is_a_ratio(rho0: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        log_e([Stage(0.5, 1, 1)], rho0)


@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0, math.nan])
def test_histories_have_a_control(weight: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        log_e_batch([weight], [1], [1])


def test_neither_rollouts_nor_experiments_need_the_collectors_libraries() -> None:
    code = "import sys, gateway.stats.experiment, gateway.stats.bands; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_what_was_once_shown_stays_shown() -> None:
    process = EProcess()
    for look in (0.0, 5.0, -3.0):
        process = process.at(look)

    assert process == EProcess(-3.0, 5.0)
    assert process.rejects(0.01)
    assert not process.rejects(0.001)
    assert process.p_always == pytest.approx(math.exp(-5))
    assert EProcess().at(-2.0).p_always == 1.0


def test_a_dead_canary_needs_an_unbroken_run_and_a_healthy_control() -> None:
    run = FailureRun().after(4, 4, 90, 0).after(0, 0, 10, 0).after(4, 4, 90, 0)
    assert run.is_dead()
    assert not run.after(1, 0, 5, 0).is_dead()
    assert not run.after(0, 0, 20, 1).is_dead()
    assert not FailureRun().after(8, 8, 7, 0).is_dead()
    assert FailureRun().after(3, 3, 3, 0).is_dead(after=3)


def test_failures_of_the_control_before_the_run_began_do_not_hide_it() -> None:
    run = FailureRun()
    for _ in range(50):
        run = run.after(0, 0, 10, 1)

    assert run.after(8, 8, 20, 0).is_dead()


@given(st.integers(0, 50), st.integers(0, 500), st.floats(0.001, 0.6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_rate_at_its_bound_changes_nothing_on_average(events: int, others: int, bound: float, above: bool) -> None:
    def e_after(event: int) -> float:
        now = log_e_rate(events, events + others, bound, above=above)
        return math.exp(log_e_rate(events + event, events + others + 1, bound, above=above) - now)

    assert bound * e_after(1) + (1 - bound) * e_after(0) == pytest.approx(1)
    assert (e_after(1) > 1) == above


def test_a_service_without_errors_is_within_its_margin_after_three_thousand_requests() -> None:
    evidence = [math.exp(log_e_rate(0, n, 0.002, above=False)) for n in (2_000, 3_100)]

    assert evidence[0] < 20 < evidence[1]
    assert trials_needed(0, 3_100, 0.002, 0.05, above=False) == 0


@pytest.mark.parametrize(("events", "trials", "bound"), [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0), (1, 2, 1.0)])
def test_an_impossible_rate_is_refused(events: int, trials: int, bound: float) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        log_e_rate(events, trials, bound, above=True)


@pytest.mark.parametrize("rate", [0.0005, 0.02, 0.5])
def test_intervals_for_a_rate_hold_it_at_every_look(rate: float) -> None:
    rng = np.random.default_rng(2)
    looks = (20, 500, 10_000)
    missed = 0
    for _ in range(60):
        events = np.cumsum([rng.binomial(n - before, rate) for before, n in pairwise((0, *looks))])
        ends = [rate_interval(int(seen), n, 0.05) for seen, n in zip(events, looks, strict=True)]
        missed += not all(low <= rate <= high for low, high in ends)
    assert missed <= 3


def test_an_interval_for_a_rate_says_nothing_before_anything_was_seen() -> None:
    assert rate_interval(0, 0, 0.05) == (0.0, 1.0)
    assert rate_interval(7, 7, 0.05)[1] == 1.0


def test_a_ratio_is_in_its_interval_where_neither_side_rejects_it() -> None:
    stages = [Stage(0.05, 30, 300), Stage(0.25, 40, 60)]
    low, high = ratio_interval(stages, 0.05)

    assert low < rate_ratio(stages) < high
    assert math.exp(log_e(stages, low)) == pytest.approx(40, rel=1e-3)
    assert math.exp(log_e(stages, high, worse=False)) == pytest.approx(40, rel=1e-3)


def test_without_events_any_ratio_is_possible() -> None:
    assert ratio_interval([Stage(0.5, 0, 0)], 0.05) == (0.0, math.inf)
    assert ratio_interval([Stage(0.5, 0, 40)], 0.05)[0] == 0.0
    assert ratio_interval([Stage(0.5, 40, 0)], 0.05)[1] == math.inf


def test_the_estimated_ratio_pools_stages() -> None:
    # 100 and 50 errors in so many requests of each arm: the canary errs twice as often at every weight.
    stages = [Stage(0.05, 1_000, 9_500), Stage(0.5, 8_000, 4_000)]

    assert rate_ratio(stages) == pytest.approx(2, rel=0.001)


def test_evidence_that_is_there_needs_nothing_more() -> None:
    assert requests_needed([Stage(0.05, 20, 1)], 1_000, 0.01) == 0


def test_what_is_not_so_is_never_shown() -> None:
    assert requests_needed([Stage(0.25, 100, 300)], 10_000, 0.01) is None
    assert requests_needed([Stage(0.25, 300, 300)], 10_000, 0.05, 1.5, worse=False) is None
    assert trials_needed(50, 1_000, 0.002, 0.05, above=False) is None
    assert requests_needed([], 0, 0.01) is None


@pytest.mark.parametrize(("rho", "rho0", "worse"), [(2.0, 1.0, True), (1.0, 1.5, False)])
def test_the_forecast_is_about_what_it_then_takes(rho: float, rho0: float, worse: bool) -> None:
    """From 20,000 requests at 0.5 % and a weight of 10 %, against the median of simulated continuations.

    The forecast follows the average path; luck takes half of the runs there sooner, so it is rather long than short.
    """
    rng, weight, tick = np.random.default_rng(3), 0.1, 1_000
    begun = [Stage(weight, round(10 * rho), 90)]
    forecast = requests_needed(begun, 20_000, 0.01, rho0, worse=worse)
    canary = 10 * rho + np.cumsum(rng.poisson(tick * 0.005 * weight * rho, (200, 400)), axis=1)
    control = 90 + np.cumsum(rng.poisson(tick * 0.005 * (1 - weight), (200, 400)), axis=1)
    shown = log_e_batch([weight], canary[..., None], control[..., None], rho0, worse=worse) >= math.log(100)

    needed = np.median(np.where(shown.any(axis=1), shown.argmax(axis=1) + 1, np.inf)) * tick

    assert forecast is not None
    assert 0.8 * needed < forecast < 1.7 * needed


def test_a_quiet_service_has_a_forecast_for_its_promotion() -> None:
    assert (requests_needed([Stage(0.25, 0, 0)], 10_000, 0.05, 1.5, worse=False) or 0) > 100_000


@given(st.lists(st.integers(0, 400), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_as_planned_the_next_unit_changes_the_sample_ratio_evidence_by_nothing_on_average(seen: list[int]) -> None:
    shares = [0.2, 0.3, 0.5]

    def e_after(variant: int) -> float:
        more = [count + (place == variant) for place, count in enumerate(seen)]
        return math.exp(log_e_sample_ratio([(shares, more)]) - log_e_sample_ratio([(shares, seen)]))

    assert sum(share * e_after(variant) for variant, share in enumerate(shares)) == pytest.approx(1)


def test_sample_ratio_evidence_of_two_arms_is_a_ratio_of_beta_functions() -> None:
    expected = special.betaln(90 + 17_800, 10 + 2_200) - special.betaln(90, 10)
    expected -= 17_800 * math.log(0.9) + 2_200 * math.log(0.1)

    assert log_e_sample_ratio([((0.9, 0.1), (17_800, 2_200))]) == pytest.approx(expected)


def test_stages_of_the_sample_ratio_multiply() -> None:
    first, second = ((0.9, 0.1), (910, 90)), ((0.5, 0.5), (480, 520))

    both = log_e_sample_ratio([first, second])

    assert both == pytest.approx(log_e_sample_ratio([first]) + log_e_sample_ratio([second]))
    assert log_e_sample_ratio([]) == 0.0


def test_a_variant_that_was_to_get_nothing_got_something() -> None:
    assert log_e_sample_ratio([((1.0, 0.0), (100, 1))]) == math.inf
    assert log_e_sample_ratio([((1.0, 0.0), (100, 0))]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("shares", "seen"), [((0.5, 0.4), (1, 1)), ((0.5, 0.5), (1,)), ((0.5, 0.5), (1, -1)), ((1.5, -0.5), (1, 1))]
)
def test_an_impossible_plan_is_refused(shares: tuple[float, ...], seen: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"add up to 1|0 or more"):
        log_e_sample_ratio([(shares, seen)])


def test_the_mean_of_e_processes_counts_those_that_have_not_begun() -> None:
    assert math.exp(log_mean_e(math.log(59), 0.0, 0.0)) == pytest.approx(61 / 3)
    assert log_mean_e(-math.inf, math.log(40)) == pytest.approx(math.log(20))
