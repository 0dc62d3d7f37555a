"""The ONNX graphs give scikit-learn's answers, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gateway.packaging import read_columns
from gateway.runtime.manifest import Manifest, read_manifest, read_model_config, sha256_of
from gateway.types import Array
from models import traffic

MODELS = Path(traffic.__file__).parent
VERSIONS = ("employment/1", "employment/2", "accidents/1", "digits/1")


def held_out(key: str) -> dict[str, Array]:
    name = key.partition("/")[0]
    return (traffic.digits() if name == "digits" else traffic.held_out(name)).inputs


def run(key: str, inputs: dict[str, Array]) -> tuple[Array, Array]:
    """Labels [rows] and probabilities [rows, classes]."""
    session: Any = ort.InferenceSession(MODELS / key / "model.onnx", providers=["CPUExecutionProvider"])
    label, probability = session.run(["label", "probability"], inputs)
    return label, probability


def manifest_of(key: str) -> Manifest:
    manifest = read_manifest(MODELS / key)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("key", VERSIONS)
def test_answers_are_those_of_scikit_learn(key: str) -> None:
    reference = read_columns(MODELS / key / "reference.parquet")
    label, probability = run(key, held_out(key))
    score = probability[:, 1] if probability.shape[1] == 2 else probability.max(axis=1)
    assert (label == reference["prediction.label"]).mean() >= 0.999
    assert np.abs(score - reference["prediction.score"]).max() < 1e-4


@pytest.mark.parametrize("key", VERSIONS)
def test_a_row_gets_the_same_answer_alone_and_in_a_batch(key: str) -> None:
    batch = {name: array[:64] for name, array in held_out(key).items()}
    label, probability = run(key, batch)
    session: Any = ort.InferenceSession(MODELS / key / "model.onnx", providers=["CPUExecutionProvider"])
    for row in range(64):
        alone = session.run(["label", "probability"], {name: array[row : row + 1] for name, array in batch.items()})
        assert alone[0].tolist() == [label[row]]
        assert np.abs(alone[1][0] - probability[row]).max() < 1e-6


@pytest.mark.parametrize(
    ("key", "inputs", "classes"),
    [
        ("employment/1", {"features": ("tensor(float)", [None, 16])}, 2),
        ("employment/2", {"features": ("tensor(float)", [None, 16])}, 2),
        ("accidents/1", {"numeric": ("tensor(float)", [None, 6]), "categorical": ("tensor(string)", [None, 3])}, 2),
        ("digits/1", {"image": ("tensor(float)", [None, 8, 8])}, 10),
    ],
)
def test_signature(key: str, inputs: dict[str, tuple[str, list[int | None]]], classes: int) -> None:
    session: Any = ort.InferenceSession(MODELS / key / "model.onnx", providers=["CPUExecutionProvider"])
    assert {tensor.name: (tensor.type, tensor.shape) for tensor in session.get_inputs()} == inputs
    assert [(tensor.name, tensor.type, tensor.shape) for tensor in session.get_outputs()] == [
        ("label", "tensor(int64)", [None]),
        ("probability", "tensor(float)", [None, classes]),
    ]


@pytest.mark.parametrize("key", VERSIONS)
def test_the_manifest_describes_the_files(key: str) -> None:
    manifest = manifest_of(key)
    assert manifest.reference is not None
    assert manifest.model.sha256 == sha256_of(MODELS / key / manifest.model.file)
    assert manifest.reference.sha256 == sha256_of(MODELS / key / manifest.reference.file)
    assert manifest.code.sha256 == sha256_of(MODELS / manifest.name / manifest.code.file)
    columns = read_columns(MODELS / key / "reference.parquet")
    names = {feature.name for feature in manifest.features}
    assert columns.keys() == names | {"prediction.label", "prediction.score", "truth.label"}
    assert len(columns["truth.label"]) == manifest.metrics["n"]


@pytest.mark.parametrize("key", VERSIONS)
def test_the_metrics_are_those_of_the_reference(key: str) -> None:
    columns = read_columns(MODELS / key / "reference.parquet")
    accuracy = (columns["prediction.label"] == columns["truth.label"]).mean()
    assert accuracy == pytest.approx(manifest_of(key).metrics["accuracy"], abs=1e-6)


@pytest.mark.parametrize("key", VERSIONS)
def test_categories_cover_the_reference(key: str) -> None:
    columns = read_columns(MODELS / key / "reference.parquet")
    for feature in manifest_of(key).features:
        if feature.categories is not None:
            assert set(map(str, np.unique(columns[feature.name]))) <= set(feature.categories), feature.name


@pytest.mark.parametrize("key", ["employment/1", "employment/2"])
def test_an_unseen_code_gets_an_answer(key: str) -> None:
    _, probability = run(key, {"features": np.full((1, 16), 99, dtype=np.float32)})
    assert probability.sum() == pytest.approx(1)


def test_an_unseen_category_gets_an_answer() -> None:
    unseen = np.array([["7", "Dusk", "monsoon"]], dtype=object)
    _, probability = run("accidents/1", {"numeric": np.zeros((1, 6), dtype=np.float32), "categorical": unseen})
    assert probability.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["employment", "accidents", "digits"])
def test_model_configuration(name: str) -> None:
    config = read_model_config(MODELS / name)
    assert config.description
    assert config.batching.max_request_rows >= 500
