"""Every bundled model can be trained again, bit for bit, from what a fresh clone holds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway.runtime.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
VERSIONS = {"employment": ("1", "2"), "accidents": ("1",), "digits": ("1",)}
FILES = ("model.onnx", "reference.parquet", "manifest.json")


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder trained just now; the three scripts run side by side."""
    out = tmp_path_factory.mktemp("models")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, MODELS / name / "train.py", "--out", out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in VERSIONS
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(errors)
    return out


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in VERSIONS for number in VERSIONS[name]])
def test_training_again_gives_the_committed_bytes(retrained: Path, name: str, number: str) -> None:
    manifest = read_manifest(MODELS / name / number)
    assert manifest is not None
    libraries = manifest.code.libraries
    assert {library: version(library) for library in libraries} == libraries, (
        f"{name}/{number} was trained with other libraries: install the locked ones, or run models/{name}/train.py"
    )
    for file in FILES:
        assert (retrained / name / number / file).read_bytes() == (MODELS / name / number / file).read_bytes(), file


def test_every_version_is_trained_by_its_script(retrained: Path) -> None:
    for name, numbers in VERSIONS.items():
        assert sorted(path.name for path in (retrained / name).iterdir()) == sorted(numbers)
        assert {path.parent.name for path in (MODELS / name).glob("*/model.onnx")} == set(numbers)


def test_committed_files_are_small() -> None:
    files = [path for name in VERSIONS for path in (MODELS / name).rglob("*") if path.is_file()]
    assert {str(path.relative_to(MODELS)): path.stat().st_size for path in files if path.stat().st_size > 300_000} == {}
