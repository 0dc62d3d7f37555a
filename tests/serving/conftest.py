from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version

REGRESSION = {"kind": "regression", "output": "y"}


@pytest.fixture(scope="session")
def plane_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each kind of answer."""
    models = tmp_path_factory.mktemp("plane-models")
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "affine", "2", onnx_models.affine(3.0))
    write_version(models, "text", "1", onnx_models.identity("BYTES", ("n", 1)))
    write_version(models, "fixed", "1", onnx_models.fixed_rows())
    # A proof at load would find out that its output has no rows.
    write_version(models, "total", "1", onnx_models.total(), "[batching]\nmax_batch_rows = 1\n")
    write_version(models, "lookup", "1", onnx_models.lookup())
    write_published_version(models, "classifier", "1", onnx_models.classifier())
    write_published_version(models, "unscored", "1", onnx_models.classifier_without_score())
    write_published_version(models, "regression", "1", onnx_models.affine(2.0, columns=1), prediction=REGRESSION)
    return models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of a test's own, with models `m` and `other`."""
    folder = tmp_path / "models"
    write_version(folder, "m", "1", onnx_models.affine(1.0))
    write_version(folder, "other", "1", onnx_models.affine(10.0))
    return folder
