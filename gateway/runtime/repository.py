"""The model repository on disk: `<models>/<name>/<version>/model.onnx`, everything else optional.

Reading it does not load a model; it says what is there, which of it is to be loaded, and whether it changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from gateway.errors import StartupError
from gateway.runtime.manifest import MODEL_CONFIG_FILE, MODEL_FILE, REFERENCE_FILE, ModelConfig, read_model_config
from gateway.types import ModelKey

Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Path, inode, bytes and time of the last change of each file: as long as it stays the same, so do the files."""

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

    def stamp(self) -> Stamp:
        """Of the files in the folder now. Raises `OSError` if one of them cannot be looked at."""
        return _stamp_of(self.folder.rglob("*"))


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


def selected(folders: Iterable[VersionFolder], named: Mapping[str, Collection[str]]) -> list[VersionFolder]:
    """What is to be loaded of `folders`, sorted by name: what each `model.toml` chooses, and what a route names.

    `named` has the versions that routes name, by model.
    """
    chosen = []
    for name, group in groupby(folders, lambda folder: folder.key.name):
        versions = {folder.key.version: folder for folder in group}
        config = next(iter(versions.values())).config.versions
        wanted = config.choose(versions) | set(named.get(name, ()))
        chosen += [folder for version, folder in versions.items() if version in wanted]
    return chosen


def stamps(models: Path) -> dict[ModelKey, Stamp]:
    """Of every version in the repository, and under the name of the file of each `model.toml`.

    Raises `OSError` if the repository, or a version in it, cannot be read.
    """
    found = {}
    # Others, such as the `lost+found` of a volume, may be for nobody to read.
    for model in (path for path in models.iterdir() if MODEL_NAME.match(path.name) and path.is_dir()):
        for folder in model.iterdir():
            if (folder / MODEL_FILE).is_file():
                found[ModelKey(model.name, folder.name)] = _stamp_of(folder.rglob("*"))
        if (model / MODEL_CONFIG_FILE).is_file():
            found[ModelKey(model.name, MODEL_CONFIG_FILE)] = _stamp_of([model / MODEL_CONFIG_FILE])
    return found


def model_bytes(stamp: Stamp) -> int:
    """Size of what a version's folder holds but for its reference rows, which are not loaded."""
    return sum(size for path, _, size, _ in stamp if not path.endswith(REFERENCE_FILE))


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


def _stamp_of(paths: Iterable[Path]) -> Stamp:
    return tuple(_entry(path) for path in sorted(paths))


def _entry(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        # A link that leads nowhere, such as an editor's lock.
        return str(path), 0, 0, 0
    # The time of the change of the inode: a copy that keeps the time of modification does not keep this one.
    return str(path), status.st_ino, status.st_size, status.st_ctime_ns
