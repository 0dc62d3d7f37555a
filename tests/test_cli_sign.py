"""`gateway models sign` as an operator uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.runtime.trust import verify
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.running import clean_environment
from tests.support.signing import KeyPair

ROOT = Path(__file__).parent.parent


def gateway(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "models", *arguments]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_versions_are_signed_wherever_one_stands(tmp_path: Path) -> None:
    key = KeyPair(tmp_path)
    folders = [write_published_version(tmp_path / "models", "m", v, onnx_models.classifier()) for v in ("1", "2")]
    done = gateway("sign", "../1", ".", "--key", str(key.private), cwd=folders[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "manifest.json.sig") for folder in folders]
    assert all(verify(folder, key.public).manifest for folder in folders)


@pytest.mark.parametrize(
    ("breakage", "problem"), [("key.pub.pem", "key.pub.pem: "), ("key.pem", "m/1/manifest.json: not there")]
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, breakage: str, problem: str) -> None:
    KeyPair(tmp_path)
    folder = write_published_version(tmp_path / "models", "m", "1", onnx_models.classifier())
    (folder / "manifest.json").unlink()
    done = gateway("sign", str(folder), "--key", str(tmp_path / breakage))
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
