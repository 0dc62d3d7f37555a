"""`gateway serve` with a collector for its traces: from the option to the last span at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.otlp import Collector, collecting
from tests.support.requests import AFFINE
from tests.support.running import clean_environment, refused_start, running

SAMPLED = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}


def test_what_was_traced_has_left_when_the_gateway_has_stopped(models: Path, tmp_path: Path) -> None:
    def serve_and_stop(collector: Collector) -> None:
        options = ("--no-collector", "--otlp-endpoint", collector.url, "--trace-rate", "0")
        with running(models, tmp_path, *options) as gateway:
            for _ in range(5):
                assert gateway.predict("affine", AFFINE, headers=SAMPLED).status_code == 200
            assert gateway.predict("affine", AFFINE).status_code == 200
            # At once: what was not sent yet leaves at the end.
            assert gateway.stop() == 0, gateway.log
            assert "Traceback" not in gateway.log

    async def scenario() -> None:
        async with collecting() as collector:
            await asyncio.to_thread(serve_and_stop, collector)
            assert len(collector.servers()) == 5
            assert len(collector.spans) == 15

    asyncio.run(scenario())


def test_a_collector_that_is_not_there_costs_one_line_of_the_log_and_no_answer(models: Path, tmp_path: Path) -> None:
    options = ("--no-collector", "--otlp-endpoint", "http://127.0.0.1:1", "--trace-rate", "1")
    with running(models, tmp_path, *options) as gateway:
        for _ in range(3):
            assert gateway.predict("affine", AFFINE).status_code == 200
        assert gateway.stop() == 0, gateway.log
        (line,) = [line for line in gateway.log.splitlines() if "traces" in line or "opentelemetry" in line]
        assert "WARNING" in line
        assert "http://127.0.0.1:1 does not take traces" in line


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        (("--trace-rate", "0.5"), {}, "trace_rate has no effect without otlp_endpoint"),
        (("--otlp-endpoint", "127.0.0.1:4318"), {}, "expected a URL such as http://127.0.0.1:4318"),
        (("--otlp-endpoint", "http://127.0.0.1:4318"), {"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED=true"),
    ],
)
def test_what_could_not_take_effect_stops_the_start(
    models: Path, tmp_path: Path, options: tuple[str, ...], environment: dict[str, str], expected: str
) -> None:
    assert expected in refused_start(models, tmp_path, "--no-collector", *options, environment=environment)


def test_without_a_collector_the_exporter_is_not_even_imported() -> None:
    code = (
        "import sys, gateway.cli, gateway.server; "
        "print([m for m in sys.modules if m in ('gateway.telemetry.tracing', 'requests') "
        "or m.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
