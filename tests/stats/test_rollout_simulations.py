"""What `bench/rollout_sim.py` measures at length, briefly: how often the canary's test errs, and how soon it sees.

Seeds are fixed, so each share is what it is; each limit is what is promised, not what this seed happened to give.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.rollout_sim import METHODS, SCENARIOS, Scenario, measure, sample_ratio
from bench.rollouts import ramp, requests, steady
from gateway.stats.sequential import log_e_batch

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def of(scenario: Scenario, runs: int, seed: int) -> dict[str, dict[str, float]]:
    """Values by method."""
    return {one.server: one.values for one in measure(scenario, runs, seed)}


@pytest.mark.parametrize(
    "name",
    ["equal, ramp", "equal, live edits", "equal, shared incidents", "equal, shared incidents and live edits"],
)
def test_an_equal_canary_is_rolled_back_in_at_most_1_percent_of_rollouts(name: str) -> None:
    found = of(BY_NAME[name], 300, seed=1)

    assert found["ours"]["rollback_share"] <= 0.01
    assert found["repeated z-test"]["rollback_share"] > 0.15


def test_the_shared_incident_is_one() -> None:
    assert of(BY_NAME["equal, shared incidents"], 100, seed=1)["threshold"]["rollback_share"] > 0.9


@pytest.mark.parametrize("name", ["equal, sticky users, ramp", "equal, sticky users, live edits"])
def test_users_counted_once_are_as_good_as_independent_requests(name: str) -> None:
    found = of(BY_NAME[name], 200, seed=2)

    assert found["ours"]["rollback_share"] <= 0.01
    assert found["ours, counting requests"]["rollback_share"] > 0.05


def test_users_counted_again_in_each_stage_are_not() -> None:
    found = of(BY_NAME["equal, sticky users, live edits, counted once a stage"], 150, seed=3)

    assert found["ours"]["rollback_share"] > 0.02


@pytest.mark.parametrize("weight", ["1%", "5%", "25%", "50%"])
def test_a_dead_canary_is_gone_within_ten_of_its_requests(weight: str) -> None:
    found = of(BY_NAME[f"dead at {weight}"], 200, seed=4)["ours"]

    assert found["rollback_share"] == 1.0
    assert found["median_canary_requests"] <= 10
    # At 50 % one run in twenty has an error of the control among the first eight requests: then E alone decides.
    assert found["p95_canary_requests"] <= (16 if weight == "50%" else 10)


def test_doubled_errors_are_found_within_fifty_canary_errors() -> None:
    found = of(BY_NAME["doubled errors, ramp"], 100, seed=5)["ours"]

    assert found["rollback_share"] > 0.99
    assert found["median_canary_errors"] <= 50


def test_a_canary_at_the_margin_is_promoted_in_at_most_5_percent_of_rollouts() -> None:
    """Errors of 1.5 times the control's, margin 1.5: the worst case of what must not be promoted."""
    promoted = _promoted(1.5, seed=6)

    assert promoted <= 0.05


def test_an_equal_canary_is_promoted_in_the_end() -> None:
    assert _promoted(1.0, seed=7) > 0.9


def test_sample_ratio_alarms_are_rare_unless_the_split_is_wrong() -> None:
    shares = {one.server: one.values["alarm_share"] for one in sample_ratio(1_000, seed=8)}

    assert shares["as planned, 90/10"] <= 0.001
    assert shares["as planned, ramp"] <= 0.001
    assert shares["89/11 instead of 90/10"] > 0.99


def test_every_scenario_names_rules_there_are() -> None:
    assert {name for scenario in SCENARIOS for name in scenario.methods} == METHODS.keys()


def _promoted(factor: float, seed: int) -> float:
    """Share of 200 rollouts of 400,000 requests that are shown non-inferior at some look."""
    schedule = ramp(800)
    traffic = requests(np.random.default_rng(seed), 200, schedule, steady(800), factor=factor, tick=500)
    stages = schedule.stage[:, None] == np.arange(len(schedule.weights))
    canary, control = (
        np.cumsum(counts[:, :, None] * stages, axis=1) for counts in (traffic.canary_errors, traffic.control_errors)
    )
    shown = log_e_batch(schedule.weights, canary, control, 1.5, worse=False) >= math.log(20)
    return float(shown.any(axis=1).mean())
