from __future__ import annotations

import pytest

from bench.report import tables
from bench.results import Measurement, Results
from bench.runtime_thresholds import runtime_verdicts
from bench.verdict import Verdict


def _results(scenario: str, **servers: dict[str, float]) -> Results:
    """`large_a` stands for `large a`: names of servers are words."""
    rounds = [Measurement(scenario, name.replace("_", " "), 1, values) for name, values in servers.items()]
    return Results("2030-01-02T03:04:05+00:00", "python -m bench", rounds=rounds)


def _verdict(results: Results, what: str) -> Verdict:
    (found,) = (one for one in runtime_verdicts(results) if what in one.what)
    return found


@pytest.mark.parametrize(("together", "is_reached"), [(1500.0, True), (1501.0, False)])
def test_shapes_are_held_against_themselves_alone(together: float, is_reached: bool) -> None:
    results = _results("shapes", short_alone={"p99_us": 1000}, short_together={"p99_us": together})

    assert _verdict(results, "32 floats").is_reached is is_reached
    assert _verdict(results, "256 floats").measured is None


def test_a_small_model_gets_its_half() -> None:
    assert _verdict(_results("shares", small={"share": 0.46}), "share of the answers").is_reached is True
    assert _verdict(_results("shares", small={"share": 0.09}), "share of the answers").is_reached is False


def test_a_target_is_kept_or_missed_at_each_load() -> None:
    results = Results("2030", "", rounds=[Measurement("target", "90% of the capacity", 1, {"slo_share": 1.2})])

    assert _verdict(results, "90% of the capacity").is_reached is False
    assert _verdict(results, "50% of the capacity").is_reached is None


def test_a_learned_size_is_held_against_the_best_fixed_one() -> None:
    results = _results("sweep-digits", learned={"rows_per_second": 94}, best_fixed={"rows_per_second": 100})

    assert _verdict(results, "digits").is_reached is False
    assert _verdict(results, "magika").is_reached is None


@pytest.mark.parametrize(("unsuccessful", "is_reached"), [(0.0, True), (1.0, False)])
def test_one_failed_request_is_too_many(unsuccessful: float, is_reached: bool) -> None:
    verdict = _verdict(_results("reload", both={"unsuccessful": unsuccessful}), "without an answer")

    assert verdict.is_reached is is_reached


def test_memory_is_counted_for_each_model_beyond_the_first() -> None:
    rounds = [
        Measurement("resident", "models: 1", 1, {"rss_bytes": 100.0, "file_bytes": 10.0}),
        Measurement("resident", "models: 24", 1, {"rss_bytes": 100.0 + 23 * 35.0, "file_bytes": 10.0}),
    ]

    assert _verdict(Results("2030", "", rounds=rounds), "its file").measured == pytest.approx(3.5)


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert {verdict.is_reached for verdict in runtime_verdicts(Results("2030", ""))} == {None}


def test_settings_stand_in_the_order_in_which_they_were_measured() -> None:
    results = _results("lone", learned={"p50_us": 200.0, "p99_us": 1.0}, one_row={"p50_us": 100.0, "p99_us": 1.0})

    (table,) = (one for one in tables(results) if "connection" in one.title)

    assert [row[0] for row in table.rows] == ["learned", "one row"]
    assert not table.best
