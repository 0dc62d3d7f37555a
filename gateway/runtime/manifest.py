"""What a model folder says about itself: `model.toml` (set by operators) and `manifest.json` (written by training).

Both are optional: a folder with nothing but `<name>/<version>/model.onnx` is served with the defaults below.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

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


class MonitoringConfig(Document):
    """When the collector closes a window of traffic and judges it."""

    window_seconds: Annotated[float, Field(gt=0)] = 300.0
    min_rows: Annotated[int, Field(ge=100)] = 500
    """A window stays open until it is both old enough and has this many rows."""


class VersionsConfig(Document):
    """Which of the versions on disk are loaded: all, unless one of these says otherwise."""

    latest: Annotated[int, Field(ge=1)] | None = None
    """The so many highest."""
    specific: Annotated[frozenset[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = None
    """These alone."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.latest is not None and self.specific is not None:
            raise ValueError("latest and specific exclude each other; give one of them, or none for all versions")
        return self

    def choose(self, versions: Collection[str]) -> set[str]:
        """Those of `versions` that are to be loaded."""
        if self.specific is not None:
            return {version for version in versions if int(version) in self.specific}
        if self.latest is not None:
            return set(sorted(versions, key=int)[-self.latest :])
        return set(versions)


class ModelConfig(Document):
    """`<name>/model.toml`."""

    description: str = ""
    versions: VersionsConfig = VersionsConfig()
    batching: BatchingConfig = BatchingConfig()
    monitoring: MonitoringConfig = MonitoringConfig()


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
    external: tuple[FileRecord, ...] | None = None
    """Files beside the model that hold its larger tensors (ONNX "external data"), by the names it has for them."""
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
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise StartupError(f"{path}: {explain(error)}") from error


def read_manifest(folder: Path) -> Manifest | None:
    """`manifest.json` of a version folder, or None. Raises `StartupError` naming file and key."""
    path = folder / MANIFEST_FILE
    return parse_manifest(path, path.read_bytes()) if path.exists() else None


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """The manifest that `path` holds. Raises `StartupError` naming file and key."""
    try:
        manifest = Manifest.model_validate(orjson.loads(content))
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise StartupError(f"{path}: {explain(error)}") from error
    folder = path.parent
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
