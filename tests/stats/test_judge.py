from collections.abc import Mapping

import numpy as np
import pytest

from gateway.stats.judge import judge
from gateway.stats.sketch import CategoricalSketch, NumericSketch, WindowSketch
from gateway.stats.verdict import State, Status, Verdict
from gateway.types import Array, string_array

ROWS = 10_000
STATES = np.array(["CA", "NY", "TX"])


def normal(seed: int, rows: int, features: int = 30, shift: float = 0.0) -> dict[str, Array]:
    """Standard normals; only the first feature is shifted."""
    values = np.random.default_rng(seed).normal(size=(features, rows))
    values[0] += shift
    return {f"f{i}": values[i] for i in range(features)}


def states(seed: int, rows: int, shares: tuple[float, ...]) -> Array:
    return string_array(np.random.default_rng(seed).choice(STATES, rows, p=shares).tolist(), (rows,))


def reference_of(columns: Mapping[str, Array]) -> WindowSketch:
    fields = {
        name: CategoricalSketch.of_reference(values) if values.dtype == object else NumericSketch.of_reference(values)
        for name, values in columns.items()
    }
    return WindowSketch(fields, rows=len(next(iter(columns.values()))))


def verdict_on(reference: WindowSketch, columns: Mapping[str, Array], previous: Verdict | None = None) -> Verdict:
    window = reference.empty()
    window.update(columns)
    return judge("m", "1", reference, window, opened=0.0, closed=300.0, previous=previous)


NUMERIC = reference_of(normal(0, ROWS))
CATEGORICAL = reference_of({"state": states(0, ROWS, (0.5, 0.3, 0.2))})


def test_without_drift_nothing_drifts_and_at_most_one_window_in_a_hundred_warns() -> None:
    verdicts = [verdict_on(NUMERIC, normal(seed, 500)) for seed in range(1, 201)]
    assert not [f for verdict in verdicts for f in verdict.features if f.state is State.DRIFT]
    warnings = sum(verdict.status is Status.WARNING for verdict in verdicts)
    assert warnings <= 6  # The 99 % point of Binomial(200, alpha = 0.01), in the smallest window that is closed.


@pytest.mark.parametrize(
    ("shift", "rows", "wanted", "at_least"),
    [
        # D = 0.24: over the alarm floor.
        (0.61, 500, {State.DRIFT}, 17),
        # D = 0.12: over the warning floor, found among 30 features.
        (0.302, 1_000, {State.WARNING}, 17),
        # D = 0.1 is on the floor, so half of the windows suffice to find it within two.
        (0.2513, 5_000, {State.WARNING}, 10),
    ],
)
def test_power(shift: float, rows: int, wanted: set[State], at_least: int) -> None:
    found = [verdict_on(NUMERIC, normal(seed, rows, shift=shift)).features[0].state for seed in range(20)]
    assert sum(state in wanted for state in found) >= at_least


def test_eight_rows_are_insufficient_however_odd_they_look() -> None:
    verdict = verdict_on(NUMERIC, normal(1, 8, shift=9.0))
    assert verdict.status is Status.INSUFFICIENT
    assert {feature.state for feature in verdict.features} == {State.INSUFFICIENT}
    assert verdict.reasons


def test_a_window_that_could_not_show_the_alarm_floor_is_insufficient() -> None:
    verdict = verdict_on(NUMERIC, normal(1, 60))
    assert verdict.status is Status.INSUFFICIENT
    assert verdict.features[0].minimum_detectable == pytest.approx(0.2145, abs=0.001)


def test_a_tiny_shift_in_many_rows_stays_silent() -> None:
    """As in the employment data: D = 0.017 at p = 1e-8 is real and does not matter."""
    rng = np.random.default_rng(1)
    reference = reference_of({"age": rng.normal(size=200_000)})
    feature = verdict_on(reference, {"age": rng.normal(0.06, size=200_000)}).features[0]
    assert feature.p is not None
    assert feature.p < 1e-8
    assert feature.state is State.OK


def test_one_drifting_window_warns_and_two_of_three_alarm() -> None:
    verdict: Verdict | None = None
    statuses = []
    for seed, shift in enumerate([0.0, 2.0, 0.0, 2.0, 2.0, 0.0, 0.0, 2.0]):
        verdict = verdict_on(NUMERIC, normal(seed, 500, shift=shift), verdict)
        statuses.append(str(verdict.status))
    assert statuses == ["ok", "warning", "ok", "alarm", "alarm", "ok", "ok", "warning"]
    assert verdict is not None
    assert verdict.features[0].flags == (False, False, True)


def test_a_window_that_cannot_be_judged_leaves_the_memory_alone() -> None:
    first = verdict_on(NUMERIC, normal(1, 500, shift=2.0))
    quiet = verdict_on(NUMERIC, normal(2, 8), first)
    assert quiet.features[0].flags == first.features[0].flags == (True,)
    assert verdict_on(NUMERIC, normal(3, 500, shift=2.0), quiet).status is Status.ALARM


@pytest.mark.parametrize(
    ("shares", "state"),
    [((0.5, 0.3, 0.2), State.OK), ((0.35, 0.4, 0.25), State.WARNING), ((0.1, 0.2, 0.7), State.DRIFT)],
)
def test_categories(shares: tuple[float, ...], state: State) -> None:
    feature = verdict_on(CATEGORICAL, {"state": states(1, 1_000, shares)}).features[0]
    assert feature.state is state


@pytest.mark.parametrize(("share", "state"), [(0.0, State.OK), (0.03, State.WARNING), (0.2, State.DRIFT)])
def test_unseen_categories(share: float, state: State) -> None:
    values = states(1, 1_000, (0.5, 0.3, 0.2))
    values[: int(share * 1_000)] = "??"
    feature = verdict_on(CATEGORICAL, {"state": values}).features[0]
    assert feature.unseen_rate == share
    assert feature.state is state


@pytest.mark.parametrize(
    ("share", "state"), [(0.005, State.OK), (0.03, State.WARNING), (0.5, State.DRIFT), (1.0, State.DRIFT)]
)
def test_missing_values(share: float, state: State) -> None:
    columns = normal(1, 1_000)
    columns["f0"][: int(share * 1_000)] = np.nan
    feature = verdict_on(NUMERIC, columns).features[0]
    assert feature.missing_rate == share
    assert feature.state is state


def test_reasons_name_the_feature_and_the_numbers() -> None:
    verdict = verdict_on(NUMERIC, normal(1, 500, shift=2.0))
    assert any(reason.startswith("f0: KS distance 0.") for reason in verdict.reasons)
    assert all("\n" not in reason for reason in verdict.reasons)
    assert all("drift in 1 of the last 1 windows" in reason for reason in verdict.reasons)


def test_a_verdict_survives_its_json() -> None:
    verdict = verdict_on(NUMERIC, normal(1, 500, shift=2.0))
    assert Verdict.from_json(verdict.to_json()) == verdict


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b'{"status": "fine"}'])
def test_other_json_is_no_verdict(junk: bytes) -> None:
    with pytest.raises(ValueError, match="Verdict"):
        Verdict.from_json(junk)


def test_a_window_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="other fields"):
        judge("m", "1", NUMERIC, CATEGORICAL, opened=0.0, closed=1.0)
