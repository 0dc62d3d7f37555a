from __future__ import annotations

from pathlib import Path

import pytest

from bench import plot
from bench.report import markdown, tables
from bench.results import IN_PROCESS, Measurement, Results
from bench.thresholds import evaluate
from bench.verdict import Verdict


def _results(*measurements: Measurement) -> Results:
    machine = {"cpu": "a", "cores": 2, "kernel": "6", "python": "3.11", "load_before": 0.1}
    return Results("2030-01-02T03:04:05+00:00", "python -m bench", machine, {"commit": "abc"}, rounds=[*measurements])


def _cpu(server: str, *values: float, scenario: str = "rows-64", name: str = "cpu_us") -> list[Measurement]:
    return [Measurement(scenario, server, number, {name: value}) for number, value in enumerate(values, 1)]


def _verdict(results: Results, what: str) -> Verdict:
    (found,) = (one for one in evaluate(results) if what in one.what)
    return found


def test_ratios_pair_the_rounds() -> None:
    # The machine was twice as slow in round 2, for both.
    results = _results(*_cpu("gateway", 10, 20, 12), *_cpu("echo", 20, 40, 20))

    assert results.ratio("rows-64", "cpu_us", "gateway", "echo") == 0.5
    assert results.median("rows-64", "gateway", "cpu_us") == 12


def test_rounds_without_a_partner_are_left_out() -> None:
    results = _results(*_cpu("gateway", 10, 30), *_cpu("echo", 20))

    assert results.ratio("rows-64", "cpu_us", "gateway", "echo") == 0.5
    assert results.ratio("rows-64", "cpu_us", "gateway", "mosec") is None


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = _results(*_cpu("gateway", 10, 30))
    results.save(tmp_path / "deep" / "results.json")

    assert Results.load(tmp_path / "deep" / "results.json") == results


@pytest.mark.parametrize(("ours", "is_reached"), [(19.0, True), (19.1, False)])
def test_at_most(ours: float, is_reached: bool) -> None:
    verdict = _verdict(_results(*_cpu("gateway", ours), *_cpu("echo", 20)), "/ echo")

    assert verdict.is_reached is is_reached
    assert verdict.document()["is_reached"] is is_reached


@pytest.mark.parametrize(("share", "is_reached"), [(0.95, True), (0.94, False)])
def test_at_least(share: float, is_reached: bool) -> None:
    rates = [
        *_cpu("gateway", 100 * share, scenario="compute", name="rows_per_second"),
        *_cpu(IN_PROCESS, 100, scenario="compute", name="rows_per_second"),
    ]

    assert _verdict(_results(*rates), "bare session.run").is_reached is is_reached


def test_latency_beyond_echo_and_run() -> None:
    p50 = [
        *_cpu("gateway", 120, 130, scenario="rows-1", name="p50_us"),
        *_cpu("echo", 60, 70, scenario="rows-1", name="p50_us"),
        *_cpu(IN_PROCESS, 25, 25, scenario="rows-1", name="p50_us"),
    ]

    assert _verdict(_results(*p50), "beyond echo and the model").measured == 35


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert {verdict.is_reached for verdict in evaluate(_results())} == {None}


def test_refusals_that_never_came_have_no_latency() -> None:
    results = _results(Measurement("overload", "gateway", 1, {"goodput_share": 1.0, "rss_growth": 1.0}))

    assert _verdict(results, "compute-bound: p99 of refusals").is_reached is None
    assert _verdict(results, "compute-bound: goodput").is_reached is True


def test_a_peer_that_wins_is_shown_winning() -> None:
    table = tables(_results(*_cpu("gateway", 30), *_cpu("mosec", 20), *_cpu("echo", 10)))[0]

    assert [row[0] for row in table.rows] == ["echo", "mosec", "gateway"]
    assert table.best == {(1, 1)}


def test_unavailable_peers_and_missed_thresholds_are_in_the_report() -> None:
    results = _results(*_cpu("gateway", 30), *_cpu("echo", 10))
    results.unavailable["ray"] = "not installed: no wheel"
    results.thresholds = [one.document() for one in evaluate(results)]

    text = markdown(results, Path("r.json"), Path("r.svg"))

    assert "| ray | not installed: no wheel |" in text
    assert "/ echo | at most 0.95 x | 3.000 x | NOT REACHED |" in text


def test_bars_grow_with_the_figure() -> None:
    widths = [plot.bar_width(figure, 10, 1000) for figure in (0, 10, 100, 1000)]

    assert widths[0] == 0
    assert widths[1:] == sorted(set(widths[1:]))
    assert widths[-1] == plot.BAR_ROOM


def test_a_peer_is_judged_at_its_better_setting() -> None:
    results = _results(*_cpu("gateway", 25), *_cpu("mosec", 60), *_cpu("mosec-10ms", 40))

    verdict = _verdict(results, "/ mosec")

    assert verdict.measured == 0.625
    assert verdict.is_reached is False


def _piece(commit: str, *measurements: Measurement) -> Results:
    results = _results(*measurements)
    results.versions = {"commit": commit}
    return results


def test_a_run_in_pieces_is_one_result() -> None:
    first = _piece("abc", *_cpu("gateway", 1, scenario="steady"), *_cpu("gateway", 2, scenario="idle"))
    first.unavailable = {"idle": "too late", "ray": "no wheel"}

    joined = first.continued(_piece("abc"), {"idle"})

    assert joined.scenarios() == ["steady"]
    assert joined.unavailable == {"ray": "no wheel"}
    assert joined.command == "python -m bench; python -m bench"


def test_pieces_of_two_commits_are_no_result() -> None:
    with pytest.raises(ValueError, match="commit is def now and was abc"):
        _piece("abc").continued(_piece("def"), {"idle"})
