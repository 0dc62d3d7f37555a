"""What a model folder says about itself: `model.toml` (set by operators) and `manifest.json` (written by training).

Both are optional: a folder with nothing but `<name>/<version>/model.onnx` is served with the defaults below.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Collection
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


Rows: TypeAlias = Annotated[int, Field(ge=1)]
Milliseconds: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]

LEARNED_ROWS_LIMIT = 256
"""Rows in a run at most where `max_batch_rows` does not say: past them a run saves the gateway next to nothing."""


OF_SHARED_RUNS = frozenset(
    ("axes", "max_batch_rows", "max_delay_ms", "max_request_rows", "preferred_batch_rows", "slo_ms", "tolerance")
)
"""What `[batching]` says of them alone."""


class BatchingConfig(Document):
    """The micro-batcher's target and limits. What is left out is learned."""

    slo_ms: Annotated[Milliseconds, Field(gt=0)] | None = None
    """From arrival to the end of the run, at the 99th percentile."""
    max_batch_rows: Rows | None = None
    """Rows in one ONNX Runtime call, unless a single request brings more."""
    preferred_batch_rows: Annotated[tuple[Rows, ...], Field(min_length=1, max_length=32)] | None = None
    """The only numbers of rows for a run where enough rows wait; which of them is the largest used is learned."""
    max_delay_ms: Annotated[Milliseconds, Field(ge=0, le=10_000)] = 0.0
    """How long a request waits for others while nothing runs."""
    instances: Annotated[int, Field(ge=1)] | None = None
    """Runs side by side."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """ONNX Runtime's, in each run."""
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

    @property
    def fixed_rows(self) -> tuple[int, ...] | None:
        """The numbers of rows that operators allow, ascending; None if they leave it to be learned."""
        if self.preferred_batch_rows is not None:
            return self.preferred_batch_rows
        return None if self.max_batch_rows is None else (self.max_batch_rows,)

    @property
    def rows_limit(self) -> int:
        """Rows in a run at most."""
        return self.fixed_rows[-1] if self.fixed_rows else min(LEARNED_ROWS_LIMIT, self.max_queue_rows)

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        idle = sorted(self.model_fields_set & OF_SHARED_RUNS)
        if not self.batchable and idle:
            raise ValueError(f"without rows (batchable = false) {', '.join(idle)} cannot take effect; leave it out")
        fixed = self.fixed_rows or ()
        if self.preferred_batch_rows is not None and self.max_batch_rows is not None:
            raise ValueError("preferred_batch_rows ends with the most rows of a run; leave max_batch_rows out")
        if list(fixed) != sorted(set(fixed)):
            raise ValueError("preferred_batch_rows must ascend")
        if self.rows_limit > self.max_queue_rows:
            raise ValueError(f"a run cannot get {self.rows_limit} rows while max_queue_rows is {self.max_queue_rows}")
        if self.slo_ms is not None and len(fixed) == 1:
            raise ValueError(f"slo_ms chooses the rows of a run, which are fixed at {fixed[0]}; give one of the two")
        if self.slo_ms is not None and self.max_delay_ms >= self.slo_ms:
            raise ValueError(f"slo_ms {self.slo_ms:g} cannot be kept after a delay of {self.max_delay_ms:g} ms")
        if self.max_delay_ms and self.rows_limit == 1:
            raise ValueError("max_delay_ms waits for more rows, and a run has one; leave it out")
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


class RuntimeConfig(Document):
    """How ONNX Runtime runs the model."""

    io_binding: bool | None = None
    """Tensors stay in place from run to run; None does so on CUDA."""
    cuda_graphs: bool = False
    """Runs of the shapes of the warm-up are captured and replayed."""
    tensorrt: Literal["fp32", "fp16"] | None = None
    """Build a TensorRT engine of this precision; None leaves the model to the CUDA provider."""

    @model_validator(mode="after")
    def _can_take_effect(self) -> Self:
        if self.cuda_graphs and self.io_binding is False:
            raise ValueError(
                "cuda_graphs needs io_binding: a graph is replayed on the addresses that it was captured on"
            )
        if self.cuda_graphs and self.tensorrt is not None:
            raise ValueError(
                "cuda_graphs captures what the CUDA provider runs, which tensorrt takes from it; choose one"
            )
        return self

    @property
    def asked(self) -> str:
        """For the message that a session cannot be had: what it was asked that not every one can do."""
        keys = {"cuda_graphs": self.cuda_graphs, "tensorrt": self.tensorrt is not None}
        return "".join(f" (model.toml asks for runtime.{key})" for key, is_set in keys.items() if is_set)


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
    padding: PaddingConfig | None = None
    monitoring: MonitoringConfig = MonitoringConfig()
    runtime: RuntimeConfig = RuntimeConfig()

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
