from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.packaging import (
    OPSETS,
    canonical_onnx,
    classification_metrics,
    code_record,
    output_folder,
    pinned_environment,
    publish_version,
    read_columns,
    reference_answers,
    write_columns,
)
from gateway.runtime.manifest import DataRecord, Feature, Manifest, Prediction, read_manifest, sha256_of
from gateway.runtime.trust import verify
from gateway.types import Array

ROOT = Path(__file__).resolve().parents[1]
FEATURES = (
    Feature(name="age", input="x", column=0, kind="numeric"),
    Feature(name="city", input="y", column=0, kind="categorical", categories=("Oslo", "Rome")),
)
REFERENCE: dict[str, Array] = {
    "age": np.array([20.5, 30.0, 40.0], dtype=np.float32),
    "city": np.array(["Oslo", "Rome", "Oslo"], dtype=object),
    "prediction.label": np.array([0, 1, 1]),
}


def publish(folder: Path, *, model: bytes = b"graph", **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "reference": REFERENCE,
        "data": DataRecord(source="a survey", licence="CC0", sha256="0" * 64, rows=3, selection="all rows"),
        "code": code_record(Path(__file__), seed=7, libraries=["numpy"]),
        "features": FEATURES,
        "prediction": Prediction(kind="classification", output="label"),
        "metrics": {"n": 3.0, "accuracy": 1.0},
    }
    return publish_version(folder, model=model, **(arguments | changes))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_version_folder_holds_model_reference_and_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "3"
    manifest = publish(folder)
    assert names(folder) == ["manifest.json", "model.onnx", "reference.parquet"]
    assert read_manifest(folder) == manifest
    assert (manifest.name, manifest.version) == ("survey", "3")
    assert manifest.model.sha256 == sha256_of(folder / "model.onnx")
    assert manifest.reference is not None
    assert manifest.reference.sha256 == sha256_of(folder / "reference.parquet")
    assert manifest.code.sha256 == sha256_of(Path(__file__))
    assert manifest.code.libraries == {"numpy": np.__version__}


def test_external_data_is_published_with_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "1"
    manifest = publish(folder, external={"b.bin": b"b", "a.bin": b"a"})
    assert manifest.external is not None
    assert [record.file for record in manifest.external] == ["a.bin", "b.bin"]
    external = verify(folder).content.external
    assert external is not None
    assert {name: file.path.read_bytes() for name, file in external.items()} == {"a.bin": b"a", "b.bin": b"b"}
    assert publish(folder, external={"a.bin": b"a", "b.bin": b"b"}) == manifest
    (folder / "b.bin").write_bytes(b"changed by hand")
    with pytest.raises(FileExistsError):
        publish(folder, external={"a.bin": b"a", "b.bin": b"b"})


def test_only_the_finished_folder_is_left_behind(tmp_path: Path) -> None:
    publish(tmp_path / "survey" / "1")
    assert names(tmp_path / "survey") == ["1"]


def test_the_manifest_reads_well_in_a_diff(tmp_path: Path) -> None:
    publish(tmp_path / "survey" / "1")
    text = (tmp_path / "survey" / "1" / "manifest.json").read_text()
    assert text.startswith('{\n  "code": {\n    "file": "test_packaging.py",')
    assert text.endswith("}\n")
    assert "null" not in text


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    for place in ("a", "b"):
        publish(tmp_path / place / "survey" / "1")
    for name in ("model.onnx", "reference.parquet", "manifest.json"):
        assert (tmp_path / "a/survey/1" / name).read_bytes() == (tmp_path / "b/survey/1" / name).read_bytes()


def test_publishing_the_same_bytes_again_leaves_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "1"
    publish(folder)
    (folder / "validation.json").write_text("{}")
    publish(folder)
    publish(folder, replace=True)
    assert "validation.json" in names(folder)


def test_another_model_under_the_same_version_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "1"
    publish(folder)
    with pytest.raises(FileExistsError, match="another model"):
        publish(folder, model=b"other graph")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert names(tmp_path / "survey") == ["1"]


def test_a_file_changed_by_hand_makes_it_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "1"
    publish(folder)
    (folder / "model.onnx").write_bytes(b"edited")
    with pytest.raises(FileExistsError):
        publish(folder)


def test_replacing_a_model_drops_what_was_known_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "survey" / "1"
    publish(folder)
    (folder / "validation.json").write_text("{}")
    publish(folder, model=b"other graph", replace=True)
    assert (folder / "model.onnx").read_bytes() == b"other graph"
    assert "validation.json" not in names(folder)
    assert names(tmp_path / "survey") == ["1"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({name: REFERENCE[name] for name in ("age", "prediction.label")}, "lacks the columns city"),
        ({name: REFERENCE[name] for name in ("age", "city")}, "lacks the columns prediction.label"),
        (REFERENCE | {"weight": np.zeros(3)}, "no feature: weight"),
        (REFERENCE | {"age": np.zeros(2)}, "equally long"),
        (REFERENCE | {"age": np.zeros((3, 1))}, "1-D"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(tmp_path: Path, reference: dict[str, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        publish(tmp_path / "survey" / "1", reference=reference)
    assert names(tmp_path) == []


def test_a_feature_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="named twice: age"):
        publish(tmp_path / "survey" / "1", features=(FEATURES[0], *FEATURES))


def test_columns_come_back_as_they_were_written(tmp_path: Path) -> None:
    columns: dict[str, Array] = REFERENCE | {"code": np.array([-1, 200, 3])}
    write_columns(tmp_path / "columns.parquet", columns)
    read = read_columns(tmp_path / "columns.parquet")
    assert {name: array.tolist() for name, array in read.items()} == {
        name: array.tolist() for name, array in columns.items()
    }
    assert {name: str(array.dtype) for name, array in read.items()} == {
        "age": "float32",
        "city": "object",
        "prediction.label": "uint8",
        "code": "int16",
    }


def test_metrics_of_two_and_of_three_classes() -> None:
    two = classification_metrics(np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]))
    assert two == {"accuracy": 0.75, "auc": 1.0, "log_loss": 0.400367, "n": 4.0}
    three = classification_metrics(np.array([2, 0]), np.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    assert three == {"accuracy": 0.5, "log_loss": 0.346574, "n": 2.0}


def test_the_score_is_the_second_class_of_two_and_the_answer_of_more() -> None:
    truth = np.array([0, 1])
    two = reference_answers(truth, np.array([[0.75, 0.25], [0.5, 0.5]]))
    assert two["prediction.label"].tolist() == [0, 0]
    assert two["prediction.score"].tolist() == [0.25, 0.5]
    assert two["truth.label"].tolist() == [0, 1]
    more = reference_answers(truth, np.array([[0.75, 0.25, 0.0], [0.25, 0.25, 0.5]]))
    assert more["prediction.label"].tolist() == [0, 2]
    assert more["prediction.score"].tolist() == [0.75, 0.5]


def test_canonical_onnx_forgets_the_exporter() -> None:
    helper = pytest.importorskip("onnx.helper")
    info = helper.make_tensor_value_info("x", 1, [None, 2])
    answer = helper.make_tensor_value_info("y", 1, [None, 2])
    models = [
        helper.make_model(
            helper.make_graph([helper.make_node("Neg", ["x"], ["y"], doc_string=note)], "g", [info], [answer]),
            producer_name=note,
            producer_version=note,
            opset_imports=[helper.make_opsetid("", OPSETS[""])],
            ir_version=ir_version,
        )
        for note, ir_version in (("today", 10), ("tomorrow", 11))
    ]
    first, second = map(canonical_onnx, models)
    assert first == second
    assert b"today" not in first


def test_the_output_folder_is_the_scripts_own_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path("models/survey/train.py")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert output_folder(script) == Path("models/survey")
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", "elsewhere"])
    assert output_folder(script) == Path("elsewhere/survey")


def test_pinning_restarts_the_script_once_with_its_arguments(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from gateway.packaging import pin_environment\n"
        "print('start')\n"
        "pin_environment()\n"
        "print(sys.argv[1], os.environ['OMP_NUM_THREADS'], os.environ['PYTHONHASHSEED'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, script, "argument"], env=environment, check=True, capture_output=True, text=True
    )
    assert result.stdout.split("\n") == ["start", "start", "argument 1 0", ""]


def test_the_pinned_kernels_do_not_depend_on_the_machine() -> None:
    pinned = pinned_environment()
    assert "AVX512_SPR" in pinned["NPY_DISABLE_CPU_FEATURES"].split()
    assert "X86_V3" not in pinned["NPY_DISABLE_CPU_FEATURES"].split()
