"""What the data plane has traced, of requests that came through any door, and what the request log knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import NotFound
from gateway.protocol import log_codec
from gateway.serving.request_traces import RequestTraces
from gateway.telemetry import tracing as tracing_module
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.tracing import Tracing
from gateway.types import Array
from tests.support.otlp import Collector, collecting
from tests.support.planes import FakeWriter, Plane, plane_over

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


def row() -> dict[str, Array]:
    return {"x": np.ones((1, 3), np.float32)}


@asynccontextmanager
async def traced_plane(
    models: Path, folder: Path, trace_rate: float, log_rate: float, writer: FakeWriter
) -> AsyncIterator[tuple[Plane, Collector]]:
    """A data plane whose traces and log entries have all arrived at the end."""
    async with collecting() as collector:
        tracing = Tracing(collector.url, GatewayMetrics())
        traces = RequestTraces(tracing, rate=trace_rate, scheme="http", random=lambda: 0.5)
        with plane_over(models, folder, writer=writer, rate=log_rate, traces=traces) as plane:
            yield plane, collector
            await plane.log.flush()
            await tracing.close()


@pytest.mark.parametrize(("trace_rate", "log_rate"), [(0.1, 0.3), (0.3, 0.1), (0.2, 1.0), (1.0, 0.2)])
def test_the_smaller_sample_is_part_of_the_larger_and_the_log_names_the_traces(
    trace_rate: float, log_rate: float, plane_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 600
    monkeypatch.setattr(tracing_module, "MAX_TRACES_PER_SECOND", total)

    async def scenario() -> None:
        writer = FakeWriter()
        async with traced_plane(plane_models, tmp_path, trace_rate, log_rate, writer) as (plane, collector):
            for _ in range(6):
                await asyncio.gather(*(plane.predict("affine", row()) for _ in range(total // 6)))
        traced = {span.attributes["gateway.prediction_id"]: span.trace_id for span in collector.servers()}
        entries = [log_codec.decode(fields) for _, fields in writer.entries]
        logged = {request.prediction_id: request.trace_id for entry in entries for request in entry.requests}
        # Five standard deviations of a binomial count.
        assert abs(len(traced) - trace_rate * total) <= 5 * (trace_rate * (1 - trace_rate) * total) ** 0.5
        assert traced.keys() <= logged.keys() if trace_rate <= log_rate else logged.keys() <= traced.keys()
        assert {key: trace for key, trace in logged.items() if trace} == {
            key: traced[key] for key in traced.keys() & logged.keys()
        }

    asyncio.run(scenario())


def test_a_request_of_another_protocol_is_traced_without_words_of_http(plane_models: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with traced_plane(plane_models, tmp_path, 0.0, 0.0, FakeWriter()) as (plane, collector):
            await plane.predict("affine", row(), headers=SAMPLED)
            with pytest.raises(NotFound):
                plane.submit("nobody", row(), headers=SAMPLED)
            _, replies = plane.submit("lookup", {"index": np.array([9], np.int64)}, headers=SAMPLED)
            await plane.registry.close()
            assert len(replies) == 1
        answered, refused, failed = collector.servers()
        assert {span.name for span in (answered, refused, failed)} == {"infer"}
        assert {span.parent_id for span in (answered, refused, failed)} == {SPAN}
        assert not any(name.startswith(("http.", "url.")) for name in answered.attributes)
        assert (refused.attributes["gateway.model"], refused.attributes["error.type"]) == ("nobody", "not_found")
        assert failed.attributes["gateway.version"] == "1"
        assert failed.end > failed.start

    asyncio.run(scenario())


@pytest.mark.parametrize(("rate", "expected"), [(0.4, 0), (0.6, 1)])
def test_of_requests_that_got_no_id_the_same_share_is_drawn_by_lot(
    rate: float, expected: int, plane_models: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with traced_plane(plane_models, tmp_path, rate, 0.0, FakeWriter()) as (plane, collector):
            with pytest.raises(NotFound):
                plane.submit("nobody", row())
        assert len(collector.servers()) == expected

    asyncio.run(scenario())


def test_who_left_is_not_traced(plane_models: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with traced_plane(plane_models, tmp_path, 1.0, 0.0, FakeWriter()) as (plane, collector):
            call, _ = plane.submit("affine", row(), headers=SAMPLED)
            plane.plane.abandon(call)
            await plane.predict("affine", row())
        (server,) = collector.servers()
        assert server.parent_id == ""

    asyncio.run(scenario())
