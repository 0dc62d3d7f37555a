"""NVIDIA's `perf_analyzer` measures the gateway as it measures Triton, and finds the server's own figures."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.dockerfile import ROOT
from tests.support.running import GatewayProcess

FOLDER = ROOT / ".data" / "perf_analyzer"
PROGRAM = FOLDER / "perf_analyzer"
REQUESTS = 200

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="no perf_analyzer (.ci/perf_analyzer installs it)")


def counted(gateway: GatewayProcess) -> tuple[int, int]:
    """Requests and rows of `affine` that were answered so far, over its versions."""
    versions = gateway.public.get("/v2/models/affine/stats").json()["model_stats"]
    requests = sum(version["inference_stats"]["success"]["count"] for version in versions)
    return requests, sum(version["inference_count"] for version in versions)


def measure(gateway: GatewayProcess, report: Path, *options: str) -> dict[str, float]:
    """The one row of the report; figures of the server are averages of a request in microseconds."""
    command = [str(PROGRAM), "-m", "affine", "-u", urlsplit(gateway.public_url).netloc, "-f", str(report)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(FOLDER)}
    # A number of requests, because windows repeat until the figures are stable, which a busy machine may never be.
    command += ["--request-count", str(REQUESTS), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with report.open() as lines:
        (row,) = csv.DictReader(lines)
    return {name: float(value) for name, value in row.items()}


@pytest.mark.parametrize("form", ["json", "binary"])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_perf_analyzer_reports(gateway: GatewayProcess, tmp_path: Path, form: str, rows: int, concurrency: int) -> None:
    requests_before, rows_before = counted(gateway)

    load = ("-b", str(rows), "--concurrency-range", str(concurrency))
    forms = ("--input-tensor-format", form, "--output-tensor-format", form)
    report = measure(gateway, tmp_path / "report.csv", *load, *forms)

    assert report["Concurrency"] == concurrency
    assert report["Inferences/Second"] > 0
    assert report["Server Queue"] > 0
    assert report["Server Compute Infer"] > 0
    requests_after, rows_after = counted(gateway)
    assert requests_after - requests_before >= REQUESTS
    assert rows_after - rows_before == rows * (requests_after - requests_before)
