from __future__ import annotations

import gc
from pathlib import Path

import orjson
import pytest
import uvloop
from rich.console import Console

from bench import model, profile
from bench.report import print_report
from bench.results import IN_PROCESS, Measurement, Results
from bench.stopwatch import REST
from gateway.state.log_writer import LogWriter
from tests.support.onnx_models import affine, write_version

TURNS = {1: 100, 4: 50}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a tiny model that takes what the bench's MLP takes."""
    folder = tmp_path_factory.mktemp("models")
    for version in ("1", "2"):
        write_version(folder, profile.MODEL, version, affine(columns=model.FEATURES))
    return folder


@pytest.fixture(scope="module")
def results(models: Path) -> Results:
    """Of a short profile."""
    results = Results("2030-01-02T03:04:05+00:00", "python -m bench --profile")
    uvloop.run(profile.profile(models, model.oip_body(profile.MODEL, 1), 5, TURNS, results.rounds.append))
    return results


def test_every_part_has_a_title() -> None:
    assert {point.part for point in profile.POINTS} | {REST} == profile.PARTS.keys()


@pytest.mark.parametrize("server", ["gateway", profile.ONE_VERSION])
@pytest.mark.parametrize("scenario", ["profile-1", "profile-4"])
def test_parts_add_up_to_about_the_whole(results: Results, scenario: str, server: str) -> None:
    rounds = [one.values for one in results.rounds if (one.scenario, one.server) == (scenario, server)]
    # The quietest round of each: a busy machine can only add.
    parts = min(sum(values[f"{part}_us"] for part in profile.PARTS) for values in rounds)
    whole = min(values["cpu_us"] for values in rounds)

    assert parts == pytest.approx(whole, rel=0.3)


def test_the_prototype_and_the_run_alone_are_measured_beside_it(results: Results) -> None:
    assert results.scenarios() == ["profile-1", "profile-4"]
    for scenario in results.scenarios():
        compared = results.of(scenario, "prototype", "cpu_us"), results.of(scenario, IN_PROCESS, "run_us")

        assert [len(rounds) for rounds in compared] == [5, 5]
        assert min(min(rounds.values()) for rounds in compared) > 0


def test_one_connection_has_its_runs_to_itself(results: Results) -> None:
    four = results.median("profile-4", "gateway", "rows_per_run")

    assert results.median("profile-1", "gateway", "rows_per_run") == 1
    assert four is not None
    assert 1 <= four <= 4


def test_a_pipe_gets_the_tables_as_markdown(results: Results, tmp_path: Path) -> None:
    with (tmp_path / "out.md").open("w") as file:
        print_report(results, Console(file=file, width=40))
    lines = (tmp_path / "out.md").read_text().splitlines()

    assert sum(line.startswith(f"| {profile.PARTS['ids']} | ") for line in lines) == 1
    assert sum(line.startswith("| gateway / prototype | ") for line in lines) == 1
    (total,) = (line for line in lines if line.startswith("| sum | "))
    assert total.count(" | 100 | ") == len(TURNS)


def test_requests_that_miss_a_part_are_an_error(models: Path) -> None:
    # An answer that carries an id is not one of those that are written for all rows of a run at once.
    document = orjson.loads(model.oip_body(profile.MODEL, 1))
    seen: list[Measurement] = []
    thresholds, append = gc.get_threshold(), LogWriter.append_predictions

    with pytest.raises(LookupError, match=r"no request came to .*gateway\.api\.slot\.row_bodies"):
        uvloop.run(profile.profile(models, orjson.dumps({"id": "a", **document}), 1, {1: 10}, seen.append))

    assert seen == []
    assert gc.get_threshold() == thresholds
    assert LogWriter.append_predictions is append


def test_answers_that_are_no_predictions_are_an_error(models: Path) -> None:
    seen: list[Measurement] = []

    with pytest.raises(RuntimeError, match=r"expected a prediction, got: HTTP/1\.1 400"):
        uvloop.run(profile.profile(models, b'{"inputs":[]}', 1, {1: 10}, seen.append))

    assert seen == []
