"""Manifests for versions made in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from gateway.runtime.manifest import sha256_of
from tests.support.onnx_models import write_version

NO_HASH = "0" * 64


def manifest_document(name: str, version: str, **changes: Any) -> dict[str, Any]:
    """A valid `manifest.json` of a two-class classifier with outputs `label` and `probability`."""
    return {
        "name": name,
        "version": version,
        "model": {"file": "model.onnx", "sha256": NO_HASH},
        "data": {"source": "made up", "licence": "CC0", "sha256": NO_HASH, "rows": 1, "selection": "all"},
        "code": {"file": "train.py", "sha256": NO_HASH, "seed": 1, "libraries": {}},
        "features": [{"name": "x", "input": "x", "kind": "numeric"}],
        "prediction": {
            "kind": "classification",
            "output": "label",
            "score": "probability",
            "classes": ["0", "1"],
        },
        "metrics": {},
        **changes,
    }


def write_published_version(models: Path, name: str, version: str, content: bytes, **changes: Any) -> Path:
    """A version folder with a manifest that is true about the model's bytes, unless `changes` say otherwise."""
    folder = write_version(models, name, version, content)
    record = {"file": "model.onnx", "sha256": sha256_of(folder / "model.onnx")}
    document = manifest_document(name, version, **{"model": record, **changes})
    (folder / "manifest.json").write_bytes(orjson.dumps(document))
    return folder
