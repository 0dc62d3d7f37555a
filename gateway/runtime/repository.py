"""The model repository on disk: `<models>/<name>/<version>/model.onnx`, everything else optional.

Reading it does not load a model; it says what is there and checks each file against its manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import StartupError
from gateway.runtime.manifest import (
    MODEL_FILE,
    FileRecord,
    Manifest,
    ModelConfig,
    read_manifest,
    read_model_config,
    sha256_of,
)
from gateway.types import ModelKey

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
VERSION = re.compile(r"[1-9][0-9]{0,8}\Z")


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version as it lies on disk."""

    key: ModelKey
    folder: Path
    config: ModelConfig

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL_FILE

    def verify(self) -> Manifest | None:
        """The manifest, with the files it names checked. Raises `StartupError` naming the file that differs."""
        manifest = read_manifest(self.folder)
        if manifest is not None:
            for record in filter(None, (manifest.model, manifest.reference)):
                _verify_file(self.folder, record)
        return manifest


def scan(models: Path) -> list[VersionFolder]:
    """Every version in the repository, by name and ascending version.

    Raises `StartupError` if there is no such folder, nothing in it, or a name that cannot be served.
    """
    if not models.is_dir():
        raise StartupError(f"model repository {models} is not a folder; name one with --models")
    found = []
    for path in sorted(models.glob(f"*/*/{MODEL_FILE}")):
        name, version = path.parent.parent.name, path.parent.name
        if not VERSION.match(version):
            raise StartupError(f"{path.parent}: a version is a whole number from 1 on without leading zeros")
        if not MODEL_NAME.match(name):
            raise StartupError(f"{path.parent.parent}: a model name is letters, digits, '.', '_' or '-' (at most 63)")
        found.append(VersionFolder(ModelKey(name, version), path.parent, read_model_config(path.parent.parent)))
    if not found:
        raise StartupError(f"model repository {models} holds no <name>/<version>/{MODEL_FILE}")
    return sorted(found, key=lambda version: (version.key.name, int(version.key.version)))


def _verify_file(folder: Path, record: FileRecord) -> None:
    path = folder / record.file
    if not path.is_file():
        raise StartupError(f"{path}: named in the manifest, but not there")
    actual = sha256_of(path)
    if actual != record.sha256:
        raise StartupError(
            f"{path}: sha256 is {actual}, the manifest says {record.sha256}; the file is not the one that was published"
        )
