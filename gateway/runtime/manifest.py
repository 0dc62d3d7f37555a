"""What a model folder says about itself: `model.toml` (set by operators) and `manifest.json` (written by training).

Both are optional: a folder with nothing but `<name>/<version>/model.onnx` is served with the defaults below.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import StartupError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
REFERENCE_FILE = "reference.parquet"
MODEL_CONFIG_FILE = "model.toml"

LABEL_COLUMN = "prediction.label"
SCORE_COLUMN = "prediction.score"
"""Columns of `reference.parquet` that hold the model's own answers on the reference rows."""
TRUTH_COLUMN = "truth.label"
"""Column of `reference.parquet` with the right answers, where they are known."""

Axis: TypeAlias = Annotated[int, Field(ge=0)]


class Document(BaseModel):
    """Unknown keys are refused: an option that cannot take effect is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BatchingConfig(Document):
    """Limits of the micro-batcher, in rows."""

    max_batch_rows: Annotated[int, Field(ge=1)] = 64
    """Rows in one ONNX Runtime call, unless a single request brings more."""
    max_request_rows: Annotated[int, Field(ge=1)] = 1024
    """A request with more rows is refused with 400."""
    max_queue_rows: Annotated[int, Field(ge=1)] = 4096
    """Rows that may wait; past it requests are refused with 429."""
    batchable: bool = True
    """False runs each request alone."""
    axes: dict[str, Axis] | None = None
    """On which axis the rows of each tensor lie. It names every output; an input that it does not name holds for all
    rows of a run. None infers it from the graph."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """How far answers to rows that ran together may be from those to rows that ran alone, as a share of the greatest
    value of the output: the proof at load."""

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        idle = sorted(self.model_fields_set & {"axes", "max_batch_rows", "max_request_rows", "tolerance"})
        if not self.batchable and idle:
            raise ValueError(f"without rows (batchable = false) {', '.join(idle)} cannot take effect; leave it out")
        return self


class PaddedInput(Document):
    """An input whose sequences are padded."""

    axis: Axis
    """Of the sequence."""
    value: bool | int | float | str = 0
    """What stands where a sequence is padded."""


class PaddingConfig(Document):
    """Sequences of different lengths share a run, each padded at its end to the next of `lengths`."""

    lengths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    """Ascending. A longer sequence is not padded."""
    inputs: Annotated[dict[str, PaddedInput], Field(min_length=1)]
    outputs: dict[str, Axis] = {}
    """Outputs that are as long as the sequence, on the axis given: each is cut back to the caller's length."""
    mask: str | None = None
    """An input that clients do not send: 1 where the sequence is the caller's, 0 where it is padded."""

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        if list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths are not ascending: {list(self.lengths)}")
        if self.mask in self.inputs:
            raise ValueError(f"{self.mask!r} is either the mask or an input that clients send")
        return self


class MonitoringConfig(Document):
    """When the collector closes a window of traffic and judges it."""

    window_seconds: Annotated[float, Field(gt=0)] = 300.0
    min_rows: Annotated[int, Field(ge=100)] = 500
    """A window stays open until it is both old enough and has this many rows."""


class ModelConfig(Document):
    """`<name>/model.toml`."""

    description: str = ""
    batching: BatchingConfig = BatchingConfig()
    padding: PaddingConfig | None = None
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="after")
    def _pads_only_for_company(self) -> Self:
        if self.padding is not None and (not self.batching.batchable or self.batching.max_batch_rows == 1):
            raise ValueError("padding is for requests that share a run; here each runs alone, so leave it out")
        return self


class Feature(Document):
    """One monitored feature: an element of each row of one input tensor."""

    name: str
    input: str
    column: Annotated[int, Field(ge=0)] = 0
    """Row-major index into the row, so pixel (r, c) of an 8x8 image is 8 r + c."""
    kind: Literal["numeric", "categorical"]
    categories: tuple[str, ...] | None = None
    """Known values of a categorical feature, as strings."""


class Prediction(Document):
    """Which outputs are the answer that labels are compared with."""

    kind: Literal["classification", "regression"]
    output: str
    """Shape [rows] or [rows, 1]: class label or value."""
    score: str | None = None
    """Classification: the output with class probabilities, shape [rows, classes]."""
    classes: tuple[str, ...] | None = None


class FileRecord(Document):
    """A file and the SHA-256 of its bytes."""

    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DataRecord(Document):
    """Where the training rows came from."""

    source: str
    licence: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the training file's bytes."""
    rows: int
    selection: str
    """Which rows of the source were used, in words a reader can repeat."""


class CodeRecord(FileRecord):
    """The training script, the seed and the libraries that ran it."""

    seed: int
    libraries: dict[str, str]


class Manifest(Document):
    """`<name>/<version>/manifest.json`: the lineage of one version."""

    name: str
    version: str
    model: FileRecord
    reference: FileRecord | None = None
    data: DataRecord
    code: CodeRecord
    features: tuple[Feature, ...]
    prediction: Prediction
    metrics: dict[str, float]
    example: dict[str, list[float | int | str]] = {}
    """One real row: by input, its values in row-major order."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model_config(folder: Path) -> ModelConfig:
    """`model.toml` of a model folder, or the defaults. Raises `StartupError` naming file and key."""
    path = folder / MODEL_CONFIG_FILE
    if not path.exists():
        return ModelConfig()
    try:
        return ModelConfig.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise StartupError(f"{path}: {explain(error)}") from error


def read_manifest(folder: Path) -> Manifest | None:
    """`manifest.json` of a version folder, or None. Raises `StartupError` naming file and key."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        manifest = Manifest.model_validate(orjson.loads(path.read_bytes()))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise StartupError(f"{path}: {explain(error)}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise StartupError(
            f"{path}: describes {manifest.name}/{manifest.version} but lies in {folder.parent.name}/{folder.name}"
        )
    return manifest


def explain(error: Exception) -> str:
    """One line for a person: the path in the document and what was expected there."""
    if not isinstance(error, ValidationError):
        return str(error)
    parts = (f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors())
    return "; ".join(parts)
