"""Simulated rollouts: traffic to a canary and a control, tick by tick, with everything that misleads a test.

A tick is what comes between two looks. Counts are arrays of shape [runs, ticks]; all runs have one schedule of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[np.int64]

BASE_RATE = 0.005
STEPS = (0.01, 0.05, 0.25, 0.50)
INCIDENT_RATE = 0.15
INCIDENT_EVERY = 400
INCIDENT_TICKS = 60
USERS = 3_000
PRONE_SHARE = 0.03
"""Users whose requests fail far more often than others', whoever answers."""
PRONE_RATE = 0.30
CALM_RATE = 0.001


@dataclass(frozen=True, slots=True)
class Schedule:
    """Weights by stage, and the stage of each tick."""

    weights: Floats
    stage: Counts

    @property
    def by_tick(self) -> Floats:
        """The weight in force."""
        return np.asarray(self.weights[self.stage])


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was counted in each tick of each run."""

    schedule: Schedule
    canary_requests: Counts
    canary_errors: Counts
    control_requests: Counts
    control_errors: Counts
    canary_units: Counts
    """What the test of counts is given: errors, or where users stick, users with their first error."""
    control_units: Counts


def ramp(ticks: int) -> Schedule:
    """1, 5, 25, 50 %, for equally long."""
    return Schedule(np.array(STEPS), np.arange(ticks) * len(STEPS) // ticks)


def constant(ticks: int, weight: float) -> Schedule:
    """One stage."""
    return Schedule(np.array([weight]), np.zeros(ticks, dtype=np.int64))


def edited(ticks: int, rng: np.random.Generator, edits: int = 20) -> Schedule:
    """An operator who changes the weight at random moments, up and down, between 1 and 50 %."""
    moments = np.sort(rng.choice(np.arange(1, ticks), edits, replace=False))
    stage = np.searchsorted(moments, np.arange(ticks), side="right")
    weights: Floats = np.exp(rng.uniform(np.log(0.01), np.log(0.5), edits + 1))
    return Schedule(weights.round(3), stage)


def steady(ticks: int) -> Floats:
    """An error rate of 0.5 %."""
    return np.full(ticks, BASE_RATE)


def incidents(ticks: int) -> Floats:
    """Every now and then something that both versions depend on fails: 15 % errors for a while."""
    is_on = np.arange(ticks) % INCIDENT_EVERY >= INCIDENT_EVERY - INCIDENT_TICKS
    return np.where(is_on, INCIDENT_RATE, BASE_RATE)


def requests(
    rng: np.random.Generator, runs: int, schedule: Schedule, rates: Floats, *, factor: float = 1.0, tick: int = 100
) -> Traffic:
    """Independent requests, `tick` at a time; the canary's error rate is `factor` times the control's, at most 1."""
    canary = rng.binomial(tick, schedule.by_tick, (runs, len(rates)))
    canary_errors = rng.binomial(canary, np.minimum(1.0, rates * factor))
    control_errors = rng.binomial(tick - canary, rates)
    return Traffic(schedule, canary, canary_errors, tick - canary, control_errors, canary_errors, control_errors)


Dedupe: TypeAlias = Callable[[Counts, Counts], Counts]
"""Users and stages of the errors, in order of time, to the positions of those that count."""


def once(users: Counts, stages: Counts) -> Counts:
    """A user's first error since the rollout began."""
    return np.unique(users, return_index=True)[1]


def once_a_stage(users: Counts, stages: Counts) -> Counts:
    """A user's first error in each stage, which counts the same toss of the coin again."""
    return np.unique(np.stack([users, stages]), axis=1, return_index=True)[1]


def sticky(
    rng: np.random.Generator, runs: int, schedule: Schedule, *, tick: int = 100, dedupe: Dedupe = once
) -> Traffic:
    """Users who come back and stay where they are, a few of them responsible for most errors. No difference."""
    drawn = [_one_sticky_run(rng, schedule, tick, dedupe) for _ in range(runs)]
    return Traffic(schedule, *(np.stack(column) for column in zip(*drawn, strict=True)))


def _one_sticky_run(rng: np.random.Generator, schedule: Schedule, tick: int, dedupe: Dedupe) -> list[Counts]:
    ticks = len(schedule.stage)
    shares = rng.lognormal(0, 1.5, USERS)
    users = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], rng.random(ticks * tick))
    when = np.repeat(np.arange(ticks), tick)
    place = rng.random(USERS)
    is_canary = place[users] < schedule.by_tick[when]
    rates = np.where(rng.random(USERS) < PRONE_SHARE, PRONE_RATE, CALM_RATE)
    is_error = rng.random(len(users)) < rates[users]
    failed = np.flatnonzero(is_error)
    counted = failed[dedupe(users[failed], schedule.stage[when[failed]])]

    def by_tick(positions: npt.NDArray[np.intp]) -> Counts:
        return np.bincount(when[positions], minlength=ticks)

    return [
        by_tick(np.flatnonzero(is_canary)),
        by_tick(np.flatnonzero(is_canary & is_error)),
        by_tick(np.flatnonzero(~is_canary)),
        by_tick(np.flatnonzero(~is_canary & is_error)),
        by_tick(counted[is_canary[counted]]),
        by_tick(counted[~is_canary[counted]]),
    ]
