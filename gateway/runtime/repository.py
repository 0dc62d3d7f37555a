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
    found = [usable(version) for version in survey(models).values()]
    if not found:
        raise StartupError(f"model repository {models} holds no <name>/<version>/{MODEL_FILE}")
    return sorted(found, key=lambda version: (version.key.name, int(version.key.version)))


def survey(models: Path) -> dict[ModelKey, VersionFolder | StartupError]:
    """Every version in the repository, or what is wrong with its name or its model's `model.toml`."""
    return {
        ModelKey(path.parent.parent.name, path.parent.name): _look(path.parent)
        for path in sorted(models.glob(f"*/*/{MODEL_FILE}"))
    }


def usable(found: VersionFolder | StartupError) -> VersionFolder:
    """What `survey` found. Raises the `StartupError` if it is one."""
    if isinstance(found, StartupError):
        raise found
    return found


def _look(folder: Path) -> VersionFolder | StartupError:
    name, version = folder.parent.name, folder.name
    if not VERSION.match(version):
        return StartupError(f"{folder}: a version is a whole number from 1 on without leading zeros")
    if not MODEL_NAME.match(name):
        return StartupError(f"{folder.parent}: a model name is letters, digits, '.', '_' or '-' (at most 63)")
    try:
        return VersionFolder(ModelKey(name, version), folder, read_model_config(folder.parent))
    except StartupError as error:
        return error


def _verify_file(folder: Path, record: FileRecord) -> None:
    path = folder / record.file
    if not path.is_file():
        raise StartupError(f"{path}: named in the manifest, but not there")
    actual = sha256_of(path)
    if actual != record.sha256:
        raise StartupError(
            f"{path}: sha256 is {actual}, the manifest says {record.sha256}; the file is not the one that was published"
        )
