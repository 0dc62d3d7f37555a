"""`python -m bench.rollout_sim`: how often rules for canaries err, and how soon they see; see docs/rollouts.md.

Three rules look at the same simulated traffic after every tick: ours, a z-test repeated at each look, and a threshold
on the error rate of the last windows. A minute and a half of one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.places import RESULTS, relative
from bench.results import Measurement, Results
from bench.rollouts import (
    Counts,
    Floats,
    Schedule,
    Traffic,
    constant,
    edited,
    incidents,
    once_a_stage,
    ramp,
    requests,
    steady,
    sticky,
)
from gateway.stats.sequential import SAMPLE_RATIO_ALPHA, FailureRun, log_e_batch, log_e_sample_ratio

Detections = npt.NDArray[np.int64]
"""By run: the tick after which the rule rolled back, -1 if never."""

RUNS = 1_000
CHUNK = 50
"""Runs simulated at a time; each has its own schedule of edits."""
ALPHA = 0.01
Z_ALPHA = 2.3263
"""One-sided 1 %."""
Z_MIN_REQUESTS = 50
THRESHOLD = 0.05
WINDOW_TICKS = 10
WINDOWS = 3
SAMPLE_RATIO_LOOKS = 20
COLUMNS = ("median_canary_errors", "median_canary_requests")


def by_evidence(traffic: Traffic) -> Detections:
    """Ours: E of the counts at 1/alpha, or a canary that only fails."""
    return _earliest(_by_counts(traffic, traffic.canary_units, traffic.control_units), _dead(traffic))


def by_evidence_of_requests(traffic: Traffic) -> Detections:
    """Ours, told requests where it should be told users."""
    return _by_counts(traffic, traffic.canary_errors, traffic.control_errors)


def by_z_test(traffic: Traffic) -> Detections:
    """Two proportions of everything so far, at 1 % at every look from 50 canary requests on."""
    n, m = np.cumsum(traffic.canary_requests, axis=1), np.cumsum(traffic.control_requests, axis=1)
    x, y = np.cumsum(traffic.canary_errors, axis=1), np.cumsum(traffic.control_errors, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (x + y) / (n + m)
        z = (x / n - y / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return _first_true((n >= Z_MIN_REQUESTS) & (np.nan_to_num(z) > Z_ALPHA))


def by_threshold(traffic: Traffic) -> Detections:
    """Over 5 % errors in each of the canary's last three windows of ten ticks."""
    runs, ticks = traffic.canary_errors.shape
    windows = ticks // WINDOW_TICKS
    shape = (runs, windows, WINDOW_TICKS)
    kept = windows * WINDOW_TICKS
    errors = traffic.canary_errors[:, :kept].reshape(shape).sum(axis=2)
    total = traffic.canary_requests[:, :kept].reshape(shape).sum(axis=2)
    is_over = errors > THRESHOLD * total
    in_a_row = np.logical_and.reduce([is_over[:, shift : windows - WINDOWS + 1 + shift] for shift in range(WINDOWS)])
    found = _first_true(in_a_row)
    return np.where(found < 0, -1, (found + WINDOWS) * WINDOW_TICKS - 1)


METHODS: dict[str, Callable[[Traffic], Detections]] = {
    "ours": by_evidence,
    "ours, counting requests": by_evidence_of_requests,
    "repeated z-test": by_z_test,
    "threshold": by_threshold,
}


Draw: TypeAlias = Callable[[np.random.Generator, int], Traffic]
"""Traffic of so many runs."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way to make traffic. Where canary and control are equal, every rollback is a false one."""

    name: str
    draw: Draw
    is_equal: bool = True
    methods: tuple[str, ...] = ("ours", "repeated z-test", "threshold")


def independent(schedule: Callable[[np.random.Generator], Schedule], rates: Floats, factor: float, tick: int) -> Draw:
    """Requests that know nothing of each other."""
    return lambda rng, runs: requests(rng, runs, schedule(rng), rates, factor=factor, tick=tick)


def equal(name: str, schedule: Callable[[np.random.Generator], Schedule], rates: Floats) -> Scenario:
    """100,000 requests or so, no difference."""
    return Scenario(name, independent(schedule, rates, 1.0, 100))


def worse(name: str, weight: float | None, factor: float, *, ticks: int, tick: int) -> Scenario:
    """The canary's error rate is `factor` times 0.5 %; on the ramp, or at a constant weight."""

    def schedule(rng: np.random.Generator) -> Schedule:
        return ramp(ticks) if weight is None else constant(ticks, weight)

    return Scenario(name, independent(schedule, steady(ticks), factor, tick), is_equal=False)


STICKY = ("ours", "ours, counting requests", "repeated z-test", "threshold")
SCENARIOS = (
    equal("equal, ramp", lambda rng: ramp(1_000), steady(1_000)),
    equal("equal, live edits", lambda rng: edited(1_000, rng), steady(1_000)),
    equal("equal, shared incidents", lambda rng: ramp(1_000), incidents(1_000)),
    equal("equal, shared incidents and live edits", lambda rng: edited(1_000, rng), incidents(1_000)),
    Scenario("equal, sticky users, ramp", lambda rng, runs: sticky(rng, runs, ramp(500)), methods=STICKY),
    Scenario("equal, sticky users, live edits", lambda rng, runs: sticky(rng, runs, edited(500, rng)), methods=STICKY),
    Scenario(
        "equal, sticky users, live edits, counted once a stage",
        lambda rng, runs: sticky(rng, runs, edited(500, rng), dedupe=once_a_stage),
        methods=("ours",),
    ),
    *(worse(f"dead at {weight:.0%}", weight, 200.0, ticks=1_000, tick=2) for weight in (0.01, 0.05, 0.25, 0.5)),
    worse("20 % errors at 5 %", 0.05, 40.0, ticks=1_000, tick=10),
    worse("doubled errors, ramp", None, 2.0, ticks=2_000, tick=100),
    worse("doubled errors at 5 %", 0.05, 2.0, ticks=2_000, tick=100),
    worse("1.5 times the errors, ramp", None, 1.5, ticks=2_000, tick=100),
    worse("1.2 times the errors, ramp", None, 1.2, ticks=2_000, tick=100),
)


def measure(scenario: Scenario, runs: int, seed: int) -> list[Measurement]:
    """All rules of a scenario on the same traffic."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[list[float]]] = {name: [] for name in scenario.methods}
    for _ in range(runs // CHUNK):
        traffic = scenario.draw(rng, CHUNK)
        errors, seen = (np.cumsum(counts, axis=1) for counts in (traffic.canary_errors, traffic.canary_requests))
        for name in scenario.methods:
            ticks = METHODS[name](traffic)
            found[name] += [[errors[run, tick], seen[run, tick]] for run, tick in enumerate(ticks) if tick >= 0]
    return [_measurement(scenario, name, np.array(rows).reshape(-1, 2), runs) for name, rows in found.items()]


def sample_ratio(runs: int, seed: int) -> list[Measurement]:
    """Alarms of the sample-ratio test, planned 90/10 and a ramp, when the split is as planned and when it is 89/11."""
    rng = np.random.default_rng(seed)
    cases = {
        "as planned, 90/10": (0.10, 0.10),
        "as planned, ramp": (None, None),
        "89/11 instead of 90/10": (0.10, 0.11),
    }
    return [
        Measurement("sample ratio", name, 1, {"runs": runs, "alarm_share": _alarms(rng, runs, *weights) / runs})
        for name, weights in cases.items()
    ]


def main() -> int:
    """Print the table; a run of the usual length is kept in bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout_sim", description="Simulate rollouts.")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"Of each scenario, in steps of {CHUNK}.")
    options = parser.parse_args()
    if options.runs < CHUNK:
        parser.error(f"--runs is at least {CHUNK}")
    runs = options.runs // CHUNK * CHUNK
    started = datetime.now(UTC)
    versions = {"commit": machine.commit(), "numpy": metadata.version("numpy")}
    results = Results(
        started.isoformat(timespec="seconds"), "python -m bench.rollout_sim", machine.describe(), versions
    )
    for seed, scenario in enumerate(SCENARIOS):
        results.rounds += measure(scenario, runs, seed)
    results.rounds += sample_ratio(runs, len(SCENARIOS))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(_table(results))
    if runs == RUNS:
        file = RESULTS / f"{started:%Y-%m-%d}-rollout-sim.json"
        results.save(file)
        console.print(f"stored in {relative(file)}")
    return 0


def _by_counts(traffic: Traffic, canary: Counts, control: Counts) -> Detections:
    stages = traffic.schedule.stage[:, None] == np.arange(len(traffic.schedule.weights))
    canary, control = (np.cumsum(counts[:, :, None] * stages, axis=1) for counts in (canary, control))
    return _first_true(log_e_batch(traffic.schedule.weights, canary, control) >= -np.log(ALPHA))


def _dead(traffic: Traffic) -> Detections:
    columns = (traffic.canary_requests, traffic.canary_errors, traffic.control_requests, traffic.control_errors)
    # Where users stick, a failure counts if it is its user's first.
    is_down = traffic.canary_errors == traffic.canary_requests
    failures = np.where(is_down, traffic.canary_units, 0)
    attempts = np.where(is_down, traffic.canary_units, columns[0])
    found = np.full(len(attempts), -1)
    for run, windows in enumerate(zip(attempts, failures, *columns[2:], strict=True)):
        state = FailureRun()
        for tick, counts in enumerate(zip(*(column.tolist() for column in windows), strict=True)):
            state = state.after(*counts)
            if state.is_dead():
                found[run] = tick
                break
    return found


def _alarms(rng: np.random.Generator, runs: int, planned: float | None, actual: float | None) -> int:
    """Runs that are frozen at one of twenty looks at 100,000 requests in all."""
    per_look = 5_000
    weights = np.full(SAMPLE_RATIO_LOOKS, planned) if planned else ramp(SAMPLE_RATIO_LOOKS).by_tick
    counts = rng.binomial(per_look, weights if actual is None else actual, (runs, SAMPLE_RATIO_LOOKS))
    return sum(_is_frozen(weights.tolist(), canary, per_look) for canary in counts.tolist())


def _is_frozen(weights: list[float], canary: list[int], per_look: int) -> bool:
    stages: dict[float, tuple[int, int]] = {}
    for weight, seen in zip(weights, canary, strict=True):
        control, before = stages.get(weight, (0, 0))
        stages[weight] = (control + per_look - seen, before + seen)
        log_e = log_e_sample_ratio(((1 - share, share), counts) for share, counts in stages.items())
        if log_e >= -np.log(SAMPLE_RATIO_ALPHA):
            return True
    return False


def _first_true(flags: npt.NDArray[np.bool_]) -> Detections:
    return np.where(flags.any(axis=1), flags.argmax(axis=1), -1)


def _earliest(left: Detections, right: Detections) -> Detections:
    never = np.iinfo(np.int64).max
    first = np.minimum(np.where(left < 0, never, left), np.where(right < 0, never, right))
    return np.where(first == never, -1, first)


def _measurement(scenario: Scenario, method: str, found: Floats, runs: int) -> Measurement:
    values = {"runs": float(runs), "rollback_share": len(found) / runs}
    if len(found):
        errors, seen = np.median(found, axis=0).tolist()
        values |= {"median_canary_errors": errors, "median_canary_requests": seen}
        values["p95_canary_requests"] = float(np.percentile(found[:, 1], 95))
    return Measurement(scenario.name, method, 1, values)


def _table(results: Results) -> Table:
    table = Table(
        "",
        "rule",
        "rolled back",
        "canary errors",
        "canary requests",
        title=f"{results.rounds[0].values['runs']:.0f} runs each",
    )
    for one in results.rounds:
        values = one.values
        share = values.get("rollback_share", values.get("alarm_share", 0.0))
        seen = [f"{values[name]:,.0f}" if name in values else "" for name in COLUMNS]
        table.add_row(one.scenario, one.server, f"{share:.1%}", *seen)
    return table


if __name__ == "__main__":
    sys.exit(main())
