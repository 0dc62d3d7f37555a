import logging
import os
from pathlib import Path

import pytest

from gateway.collector.catalog import Catalog, Unwatched, Watched
from gateway.runtime.manifest import LABEL_COLUMN, SCORE_COLUMN, Feature, MonitoringConfig, Prediction
from gateway.stats.sketch import CategoricalSketch, NumericSketch
from gateway.types import ModelKey
from tests.collector.loans import STATES, publish

KEY = ModelKey("loans", "1")


def reason(models: Path) -> str:
    known = Catalog(models).get(KEY)
    assert isinstance(known, Unwatched)
    return known.reason


def test_the_reference_has_every_feature_and_the_answers(tmp_path: Path) -> None:
    publish(tmp_path)
    known = Catalog(tmp_path).get(KEY)
    assert isinstance(known, Watched)
    reference = known.reference
    assert reference.rows == 5_000
    assert list(reference.fields) == ["amount", "grade", "state", LABEL_COLUMN, SCORE_COLUMN]
    assert isinstance(reference.fields["amount"], NumericSketch)
    grade, state, label = (reference.fields[name] for name in ("grade", "state", LABEL_COLUMN))
    assert isinstance(grade, CategoricalSketch)
    assert isinstance(state, CategoricalSketch)
    assert isinstance(label, CategoricalSketch)
    assert (grade.categories, state.categories, label.categories) == (("1", "2", "3", "4"), STATES, ("0", "1"))
    assert {field.count for field in reference.fields.values()} == {5_000}


def test_a_regression_s_answer_is_a_number(tmp_path: Path) -> None:
    publish(tmp_path, prediction=Prediction(kind="regression", output="label"))
    known = Catalog(tmp_path).get(KEY)
    assert isinstance(known, Watched)
    assert isinstance(known.reference.fields[LABEL_COLUMN], NumericSketch)
    assert SCORE_COLUMN not in known.reference.fields


def test_models_and_windows_are_found_on_disk(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "nowhere").scan() == {}
    publish(tmp_path)
    publish(tmp_path, name="cards", version="2")
    (tmp_path / "cards" / ".3-scratch").mkdir()
    (tmp_path / "cards" / ".3-scratch" / "model.onnx").touch()
    found = Catalog(tmp_path).scan()
    assert {name: folder.versions for name, folder in found.items()} == {"cards": ("2",), "loans": ("1",)}
    assert found["loans"].monitoring == MonitoringConfig(window_seconds=60, min_rows=500)


def test_a_broken_model_file_means_default_windows_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path)
    (tmp_path / "loans" / "model.toml").write_text("monitoring = 3")
    catalog = Catalog(tmp_path)
    for _ in range(3):
        assert catalog.scan()["loans"].monitoring == MonitoringConfig()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_a_manifest_or_a_reference_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    assert reason(tmp_path) == "no manifest"
    publish(tmp_path, with_reference=False)
    assert reason(tmp_path) == "the manifest names no reference"


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    manifest = (folder / "manifest.json").read_text()
    reference = (folder / "reference.parquet").read_bytes()
    (folder / "reference.parquet").write_bytes(reference[:-10])
    assert "not the file that the manifest describes" in reason(tmp_path)
    (folder / "reference.parquet").unlink()
    assert "reference.parquet" in reason(tmp_path)
    (folder / "manifest.json").write_text(manifest[:-10])
    assert "manifest.json" in reason(tmp_path)


def test_a_reference_that_lacks_a_feature_is_named(tmp_path: Path) -> None:
    publish(tmp_path, features=(Feature(name="income", input="numbers", kind="numeric"),))
    assert reason(tmp_path) == "the reference has no column 'income'"


def test_a_version_is_read_once_and_again_when_its_manifest_changes(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    assert isinstance(catalog.get(KEY), Unwatched)
    folder = publish(tmp_path)
    known = catalog.get(KEY)
    assert isinstance(known, Watched)
    assert catalog.get(KEY) is known
    os.utime(folder / "manifest.json", ns=(1, 1))
    assert catalog.get(KEY) is not known
