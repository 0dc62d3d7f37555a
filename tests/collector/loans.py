"""A model on disk without a model in it, and traffic for it: the collector never runs one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.protocol.log_codec import LogEntry, LoggedRequest, encode
from gateway.runtime.manifest import (
    LABEL_COLUMN,
    SCORE_COLUMN,
    CodeRecord,
    DataRecord,
    Feature,
    FileRecord,
    Manifest,
    Prediction,
    sha256_of,
)
from gateway.types import Array, ModelKey, string_array

STATES = ("CA", "NY", "TX")
FEATURES = (
    Feature(name="amount", input="numbers", column=0, kind="numeric"),
    Feature(name="grade", input="numbers", column=1, kind="categorical"),
    Feature(name="state", input="state", kind="categorical", categories=STATES),
)
PREDICTION = Prediction(kind="classification", output="label", score="probability", classes=("0", "1"))
ZEROS = "0" * 64


def tensors(seed: int, rows: int, *, shift: float = 0.0) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs `numbers` FP32 [rows, 2] and `state` BYTES [rows, 1]; outputs `label` and `probability` [rows, 2]."""
    rng = np.random.default_rng(seed)
    numbers = np.stack([rng.normal(shift, size=rows), rng.integers(1, 5, rows)], axis=1).astype(np.float32)
    states = string_array(rng.choice(STATES, rows).tolist(), (rows, 1))
    score = rng.uniform(size=rows).astype(np.float32)
    probability = np.stack([1 - score, score], axis=1)
    outputs: dict[str, Array] = {"label": (score > 0.5).astype(np.int64), "probability": probability}
    return {"numbers": numbers, "state": states}, outputs


def entry(seed: int, rows: int, *, model: str = "loans", version: str = "1", shift: float = 0.0) -> dict[bytes, bytes]:
    """Fields of one stream entry."""
    inputs, outputs = tensors(seed, rows, shift=shift)
    return encode(log_entry(inputs, outputs, model=model, version=version))


def log_entry(
    inputs: dict[str, Array], outputs: dict[str, Array], *, model: str = "loans", version: str = "1"
) -> LogEntry:
    """Everything in one request."""
    rows = len(next(iter(inputs.values())))
    requests = (LoggedRequest("id", "stable", 1, rows),)
    return LogEntry(ModelKey(model, version), 0.0, 1.0, requests, inputs, outputs)


def publish(
    models: Path,
    *,
    name: str = "loans",
    version: str = "1",
    features: tuple[Feature, ...] = FEATURES,
    prediction: Prediction = PREDICTION,
    with_reference: bool = True,
) -> Path:
    """Write one version with 5,000 reference rows, and a window of 60 seconds and 500 rows."""
    folder = models / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").touch()
    (models / name / "model.toml").write_text("[monitoring]\nwindow_seconds = 60\nmin_rows = 500\n")
    inputs, outputs = tensors(0, 5_000)
    columns = {
        "amount": inputs["numbers"][:, 0],
        "grade": inputs["numbers"][:, 1].astype(np.int64),
        "state": inputs["state"][:, 0],
        LABEL_COLUMN: outputs["label"],
        SCORE_COLUMN: outputs["probability"][:, 1],
    }
    path = folder / "reference.parquet"
    pq.write_table(pa.table({column: pa.array(values) for column, values in columns.items()}), path)
    manifest = Manifest(
        name=name,
        version=version,
        model=FileRecord(file="model.onnx", sha256=ZEROS),
        reference=FileRecord(file=path.name, sha256=sha256_of(path)) if with_reference else None,
        data=DataRecord(source="made up", licence="CC0-1.0", sha256=ZEROS, rows=5_000, selection="all"),
        code=CodeRecord(file="train.py", sha256=ZEROS, seed=0, libraries={}),
        features=features,
        prediction=prediction,
        metrics={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder
