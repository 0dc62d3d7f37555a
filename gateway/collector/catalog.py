"""What the collector knows about the models on disk: which there are, and what their traffic is compared with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.errors import StartupError
from gateway.runtime.manifest import (
    LABEL_COLUMN,
    MANIFEST_FILE,
    MODEL_FILE,
    SCORE_COLUMN,
    Manifest,
    MonitoringConfig,
    read_manifest,
    read_model_config,
    sha256_of,
)
from gateway.stats.sketch import CategoricalSketch, FeatureSketch, NumericSketch, WindowSketch
from gateway.types import ModelKey

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watched:
    """A version whose traffic can be judged."""

    manifest: Manifest
    reference: WindowSketch


@dataclass(frozen=True, slots=True)
class Unwatched:
    """A version whose traffic cannot be judged, and why."""

    reason: str


Known: TypeAlias = Watched | Unwatched


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model on disk."""

    monitoring: MonitoringConfig
    versions: tuple[str, ...]


class Catalog:
    """Reads `<models>/<name>/<version>/`; whatever is broken concerns its own version only."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._known: dict[ModelKey, tuple[int | None, Known]] = {}
        self._complaints: dict[str, str] = {}

    def scan(self) -> dict[str, ModelFolder]:
        """The models that are on disk now, by name."""
        versions: dict[str, list[str]] = {}
        for path in sorted(self._models.glob(f"*/[!.]*/{MODEL_FILE}")):
            versions.setdefault(path.parent.parent.name, []).append(path.parent.name)
        return {name: ModelFolder(self._monitoring(name), tuple(found)) for name, found in versions.items()}

    def get(self, key: ModelKey) -> Known:
        """What one version's traffic is compared with. Read once, and again when its manifest changes."""
        folder = self._models / key.name / key.version
        stamp = _modified(folder / MANIFEST_FILE)
        known = self._known.get(key)
        if known is None or known[0] != stamp:
            known = self._known[key] = (stamp, self._read(folder))
        return known[1]

    def _read(self, folder: Path) -> Known:
        try:
            return read_version(folder)
        except (StartupError, ValueError, OSError, pa.ArrowException) as error:
            self._complain(str(folder), f"cannot be watched: {error}")
            return Unwatched(str(error))

    def _monitoring(self, name: str) -> MonitoringConfig:
        try:
            return read_model_config(self._models / name).monitoring
        except (StartupError, OSError) as error:
            self._complain(name, f"is watched with default windows: {error}")
            return MonitoringConfig()

    def _complain(self, subject: str, complaint: str) -> None:
        if self._complaints.get(subject) != complaint:
            logger.warning("%s %s", subject, complaint)
        self._complaints[subject] = complaint


def read_version(folder: Path) -> Known:
    """What one version is compared with. Broken files raise `StartupError`, `ValueError`, `OSError` or Arrow's own."""
    manifest = read_manifest(folder)
    if manifest is None:
        return Unwatched("no manifest")
    if manifest.reference is None:
        return Unwatched("the manifest names no reference")
    path = folder / manifest.reference.file
    if sha256_of(path) != manifest.reference.sha256:
        raise ValueError(f"{path} is not the file that the manifest describes")
    return Watched(manifest, read_reference(path, manifest))


def read_reference(path: Path, manifest: Manifest) -> WindowSketch:
    """The sketch of `reference.parquet`, which also sets bins and categories. A lost column raises `ValueError`."""
    table = pq.read_table(path)
    fields: dict[str, FeatureSketch] = {}
    for feature in manifest.features:
        fields[feature.name] = _field(table, feature.name, feature.kind == "numeric", feature.categories)
    fields[LABEL_COLUMN] = _field(table, LABEL_COLUMN, manifest.prediction.kind == "regression")
    if manifest.prediction.score is not None and SCORE_COLUMN in table.column_names:
        fields[SCORE_COLUMN] = _field(table, SCORE_COLUMN, is_numeric=True)
    return WindowSketch(fields, rows=table.num_rows)


def _field(table: pa.Table, name: str, is_numeric: bool, categories: tuple[str, ...] | None = None) -> FeatureSketch:
    if name not in table.column_names:
        raise ValueError(f"the reference has no column {name!r}")
    values = table.column(name).to_numpy()
    return NumericSketch.of_reference(values) if is_numeric else CategoricalSketch.of_reference(values, categories)


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
