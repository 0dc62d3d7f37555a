"""`gateway models`: what it prints, and one line for every mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.runtime.choice import Point
from gateway.runtime.learned import learned_file, write_learned
from gateway.runtime.manifest import BatchingConfig
from gateway.runtime.repository import scan
from gateway.runtime.warming import LEARNED_FOLDER, warm_model
from gateway.tuning_report import points_of, sizes_to_measure
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.test_cli import mistake, run

Tune = Callable[..., str]


@pytest.fixture
def tune(tmp_path: Path) -> Tune:
    """Prints the tuning of version 1 of a small model with that `[batching]`."""

    def tuned(batching: str = "", content: bytes = b"", *options: str) -> str:
        toml = f"[batching]\n{batching}\n"
        write_version(tmp_path / "models", "m", "1", content or onnx_models.affine(), toml=toml)
        folders = ("--models", str(tmp_path / "models"), "--data-dir", str(tmp_path))
        done = run("models", "tune", "m", "--seconds", "0.2", *folders, *options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return tuned


def rows_of(table: str) -> list[int]:
    return [int(found) for found in re.findall(r"^ +(\d+) +[\d.]+ +[\d.]+ +[\d.]+ +[\d,]+", table, re.MULTILINE)]


def test_it_prints_the_curve_the_choice_and_what_fixed_numbers_would_cost(tune: Tune) -> None:
    text = tune()
    assert "m/1, rows of zeros" in text
    assert "one run on 1 thread" in text
    assert rows_of(text) == [2**power for power in range(9)]
    assert text.count("chosen") == 1
    chosen = re.search(r"choice: one run on 1 thread, up to (\d+) rows in a run \(learned\)", text)
    assert chosen is not None
    assert int(chosen[1]) > 8
    plot = re.findall(r"^ +(\d+)  (#+) +.*o", text, re.MULTILINE)
    assert [int(rows) for rows, _ in plot] == [2**power for power in range(9)]
    assert max(len(bar) for _, bar in plot) == 40
    fixed = re.findall(r"^ +(1|8|32|256) +[\d,]+ +(\d+)% ", text, re.MULTILINE)
    assert [int(rows) for rows, _ in fixed] == [1, 8, 32, 256]
    assert int(fixed[0][1]) < 50, "one row at a time cannot be worth half of what many are, for so small a model"


def test_the_target_is_held_against_every_number(tune: Tune) -> None:
    text = tune("slo_ms = 1000")
    assert "; keeps slo_ms 1000: 2 runs at p99 are " in text
    assert "misses slo_ms" not in text


def test_a_target_out_of_reach_is_said_to_be(tune: Tune) -> None:
    text = tune("slo_ms = 0.0001")
    assert "; cannot keep slo_ms 0.0001" in text
    assert text.count("misses slo_ms") > 9


@pytest.mark.parametrize("batching", ["max_batch_rows = 12", "preferred_batch_rows = [12]"])
def test_what_is_configured_is_the_choice_and_compared_with_the_rest(batching: str, tune: Tune) -> None:
    text = tune(batching)
    assert "up to 12 rows in a run (of those that model.toml allows)" in text
    assert re.search(r"^ +12 .*in model.toml", text, re.MULTILINE)
    assert {1, 8, 12, 256} <= set(rows_of(text))


def test_a_model_without_rows_is_measured_with_one(tune: Tune) -> None:
    text = tune(content=onnx_models.fixed_rows())
    assert rows_of(text) == [1]
    assert "up to 1 rows in a run" in text


def test_several_layouts_are_shown_where_they_were_measured(tune: Tune) -> None:
    text = tune("threads = 1\ninstances = 2")
    assert "2 runs side by side on 1 thread" in text


def test_what_a_gateway_learned_is_shown(tune: Tune, tmp_path: Path) -> None:
    assert "learned from traffic" not in tune()
    (folder,) = scan(tmp_path / "models")
    warm = warm_model(folder, "cpu", 0, None)
    for _ in range(100):
        warm.tuner.of(((7,),)).cost.observe(2, 0.123, 0.1)
    write_learned(learned_file(tmp_path / LEARNED_FOLDER, folder.key), warm.state())
    done = run(
        "models", "tune", "m", "--seconds", "0.2", "--models", str(tmp_path / "models"), "--data-dir", str(tmp_path)
    )
    assert "learned from traffic: one run on 1 thread" in done.stdout
    assert "2 shapes" in done.stdout
    assert re.search(r"^ +2 +1[12]\d\.\d", done.stdout, re.MULTILINE)


def test_the_highest_version_is_meant_unless_one_is_named(tune: Tune, tmp_path: Path) -> None:
    write_version(tmp_path / "models", "m", "10", onnx_models.affine())
    assert "m/10, rows of zeros" in tune()
    folders = ("--models", str(tmp_path / "models"), "--data-dir", str(tmp_path))
    assert "m/1, rows" in run("models", "tune", "m", "--version", "1", "--seconds", "0.1", *folders).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent",), "unknown model 'absent'; models: m, pairs"),
        (("m", "--version", "7"), "unknown version '7' of model 'm'; versions: 1"),
        (("pairs",), "pairs/1 refuses rows of zeros"),
    ],
)
def test_a_mistake_gets_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    write_version(tmp_path, "m", "1", onnx_models.affine())
    write_version(tmp_path, "pairs", "1", onnx_models.pairs())
    assert said in mistake("models", "tune", *arguments, "--models", str(tmp_path), "--data-dir", str(tmp_path / "d"))


def test_the_99th_percentile_of_samples_is_one_of_them() -> None:
    samples = {4: [float(value) for value in np.arange(1, 101)], 2: [3.0]}
    assert points_of(samples) == [Point(2, 3.0, 3.0), Point(4, 50.5, 99.0)]


def test_what_is_measured_covers_what_may_be_learned_and_what_is_fixed() -> None:
    assert sizes_to_measure(BatchingConfig(max_batch_rows=300)) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 300)
    assert sizes_to_measure(BatchingConfig(max_queue_rows=20)) == (1, 2, 4, 8, 16)
