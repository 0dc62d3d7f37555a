from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bench.places import RESULTS
from bench.results import Results
from bench.rollout_sim import by_evidence, by_threshold, by_z_test
from bench.rollouts import Traffic, constant, edited, incidents, once, once_a_stage, ramp, sticky

Counts = npt.NDArray[np.int64]


def traffic(canary_errors: Counts, control_errors: Counts, requests: int = 100) -> Traffic:
    """One run at 50 %."""
    canary, control = canary_errors[None, :], control_errors[None, :]
    seen = np.full_like(canary, requests)
    return Traffic(constant(canary.shape[1], 0.5), seen, canary, seen, control, canary, control)


def test_the_threshold_needs_three_windows_in_a_row() -> None:
    none, over = np.zeros(10, dtype=np.int64), np.full(10, 6)

    assert by_threshold(traffic(np.concatenate([none, over, over, over]), np.zeros(40, dtype=np.int64))) == [39]
    assert by_threshold(traffic(np.concatenate([over, over, none, over]), np.zeros(40, dtype=np.int64))) == [-1]


def test_the_z_test_looks_at_everything_so_far() -> None:
    # 5 of 100 against none is z = 2.26; 10 of 200 is 3.2.
    assert by_z_test(traffic(np.array([5, 5]), np.array([0, 0]))) == [1]
    assert by_z_test(traffic(np.array([5, 5]), np.array([5, 5]))) == [-1]


def test_ours_takes_whichever_rule_sees_it_first() -> None:
    dead = traffic(np.array([4, 4, 4]), np.array([0, 0, 0]), requests=4)
    worse = traffic(np.array([20, 20, 20]), np.array([2, 2, 2]))

    assert by_evidence(dead) == [1]
    assert by_evidence(worse) == [0]
    assert by_evidence(traffic(np.array([2, 2]), np.array([2, 2]))) == [-1]


def test_schedules_stay_between_their_ends() -> None:
    assert ramp(8).by_tick.tolist() == [0.01, 0.01, 0.05, 0.05, 0.25, 0.25, 0.5, 0.5]
    weights = edited(100, np.random.default_rng(1))
    assert len(np.unique(weights.stage)) == 21
    assert ((weights.by_tick >= 0.01) & (weights.by_tick <= 0.5)).all()
    assert set(incidents(400).tolist()) == {0.005, 0.15}


@pytest.mark.parametrize(("dedupe", "counted"), [(once, [0, 2]), (once_a_stage, [0, 2, 3])])
def test_which_errors_of_a_user_count(dedupe: object, counted: list[int]) -> None:
    assert callable(dedupe)
    positions = dedupe(np.array([7, 7, 8, 7]), np.array([0, 0, 0, 1]))

    assert sorted(positions.tolist()) == counted


def test_users_stay_where_they_are_and_count_once() -> None:
    drawn = sticky(np.random.default_rng(2), 2, ramp(40))

    assert (drawn.canary_requests + drawn.control_requests == 100).all()
    assert drawn.canary_units.sum() + drawn.control_units.sum() < drawn.canary_errors.sum() + drawn.control_errors.sum()
    assert (drawn.canary_units <= drawn.canary_errors).all()


def test_the_published_run_keeps_what_is_promised() -> None:
    results = Results.load(max(RESULTS.glob("*-rollout-sim.json")))
    ours = {one.scenario: one.values for one in results.rounds if one.server == "ours"}
    equal = [values for name, values in ours.items() if name.startswith("equal") and "once a stage" not in name]

    assert all(values["runs"] >= 1_000 for values in ours.values())
    assert max(values["rollback_share"] for values in equal) <= 0.01
    assert max(values["median_canary_requests"] for name, values in ours.items() if name.startswith("dead")) <= 10
    assert ours["doubled errors, ramp"]["median_canary_errors"] <= 50
    alarms = {one.server: one.values["alarm_share"] for one in results.rounds if one.scenario == "sample ratio"}
    assert alarms["as planned, 90/10"] <= 0.001
    assert alarms["as planned, ramp"] <= 0.001
