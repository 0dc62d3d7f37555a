"""Spans reach the collector, or are counted as lost; and whoever hands them over never waits."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

import pytest

from gateway.errors import StartupError
from gateway.telemetry import tracing as tracing_module
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.trace_context import TraceParent
from gateway.telemetry.tracing import EXPORT_SPANS, MAX_TRACES_PER_SECOND, MAX_WAITING_SPANS, Tracing
from tests.support.otlp import collecting
from tests.support.waiting import wait_until_async

NOWHERE = "http://127.0.0.1:1"
RETRY_ONCE_SECONDS = 1.5
"""The SDK waits some 1 s before its second attempt, some 2 s before the third."""


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Monotonic seconds."""
        return self.now


def outcomes(metrics: GatewayMetrics) -> dict[str, int]:
    """Traces by what became of them, of those that there are."""
    samples = [sample for family in metrics.collect() for sample in family.samples]
    return {s.labels["outcome"]: int(s.value) for s in samples if s.name == "gateway_traces_total" and s.value}


def has_lost(metrics: GatewayMetrics, count: int) -> bool:
    return outcomes(metrics) == {"export_failed": count}


def record(tracing: Tracing, count: int = 1, steps: int = 0) -> int:
    """Try to record that many traces; how many there was room for."""
    recorded = 0
    for _ in range(count):
        if tracing.has_room(1 + steps):
            tracing.record("a span", {}, 0.0, 1.0, steps=[("a step", 0.0, 1.0)] * steps)
            recorded += 1
    return recorded


def test_a_span_arrives_with_its_parent_its_steps_and_the_time_of_the_clock_on_the_wall() -> None:
    async def scenario() -> None:
        async with collecting() as collector:
            tracing = Tracing(collector.url + "/", GatewayMetrics())
            before = time.time()
            now = time.monotonic()
            parent = TraceParent(2**100 + 1, 2**50 + 1, 1)
            steps = [("first", now - 2.0, now - 1.5), ("second", now - 1.5, now - 1.0)]
            trace_id = tracing.record("a", {"k": 7}, now - 2.0, now, parent=parent, steps=steps, failure="broken")
            await tracing.close()
            (server,) = collector.servers()
            children = collector.children(server)
            assert trace_id == server.trace_id == f"{2**100 + 1:032x}"
            assert server.parent_id == f"{2**50 + 1:016x}"
            assert (server.name, server.attributes, server.status) == ("a", {"k": 7}, ("error", "broken"))
            assert [span.trace_id for span in children.values()] == [trace_id] * 2
            assert server.start / 1e9 == pytest.approx(before - 2.0, abs=0.5)
            assert server.end - server.start == pytest.approx(2e9, abs=1e6)
            assert children["first"].start == server.start
            assert children["first"].end == children["second"].start
            assert server.end - children["second"].end == pytest.approx(1e9, abs=1e6)

    asyncio.run(scenario())


def test_spans_say_who_sent_them_and_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,k8s.pod.name=pod-1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")

    async def scenario() -> None:
        async with collecting() as collector:
            tracing = Tracing(collector.url, GatewayMetrics())
            record(tracing)
            await tracing.close()
            resource = collector.spans[0].resource
            assert (resource["service.name"], resource["k8s.pod.name"]) == ("mine", "pod-1")
            assert resource["service.version"]
            assert collector.headers[0]["authorization"] == "secret"

    asyncio.run(scenario())


def test_traces_leave_without_being_asked_for() -> None:
    async def scenario() -> None:
        async with collecting() as collector:
            metrics = GatewayMetrics()
            tracing = Tracing(collector.url, metrics)
            record(tracing, 3, steps=2)
            await wait_until_async(lambda: outcomes(metrics) == {"exported": 3})
            assert len(collector.spans) == 9
            await tracing.close()

    asyncio.run(scenario())


def test_more_traces_than_a_second_may_have_are_counted_as_lost_until_the_next() -> None:
    async def scenario() -> None:
        async with collecting() as collector:
            metrics, clock = GatewayMetrics(), Clock()
            tracing = Tracing(collector.url, metrics, clock=clock)
            assert record(tracing, MAX_TRACES_PER_SECOND + 7) == MAX_TRACES_PER_SECOND
            clock.now += 1.0
            assert record(tracing, 1) == 1
            await tracing.close()
            assert outcomes(metrics) == {"exported": MAX_TRACES_PER_SECOND + 1, "rate_limited": 7}
            assert len(collector.spans) == MAX_TRACES_PER_SECOND + 1

    asyncio.run(scenario())


def test_a_collector_that_takes_long_fills_the_queue_and_no_more() -> None:
    async def scenario() -> None:
        async with collecting() as collector:
            metrics, clock = GatewayMetrics(), Clock()
            tracing = Tracing(collector.url, metrics, clock=clock)
            collector.gate.clear()
            recorded = 0
            for _ in range(MAX_WAITING_SPANS // MAX_TRACES_PER_SECOND + 2):
                recorded += record(tracing, MAX_TRACES_PER_SECOND)
                clock.now += 1.0
            assert recorded == MAX_WAITING_SPANS
            lost = outcomes(metrics)["queue_full"]
            assert lost > 0
            # What waits is whole: none of it had to go to make room.
            collector.gate.set()
            await tracing.close()
            assert outcomes(metrics) == {"exported": recorded, "queue_full": lost}
            assert len(collector.spans) == recorded
            assert len(collector.headers) >= MAX_WAITING_SPANS // EXPORT_SPANS

    asyncio.run(scenario())


@pytest.mark.parametrize("status", [404, 503])
def test_a_collector_that_refuses_is_told_of_once_and_so_is_its_return(
    status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "EXPORT_SECONDS", RETRY_ONCE_SECONDS)
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with collecting() as collector:
            collector.status = status
            metrics = GatewayMetrics()
            tracing = Tracing(collector.url, metrics)
            for lost in (1, 2):
                record(tracing)
                await wait_until_async(partial(has_lost, metrics, lost))
            collector.status = 200
            record(tracing)
            await tracing.close()
            assert outcomes(metrics) == {"export_failed": 2, "exported": 1}
            warning, info = [record for record in caplog.records if record.name.startswith(("gateway", "opentel"))]
            assert warning.levelname == "WARNING"
            assert f"{collector.url} does not take traces" in warning.getMessage()
            assert {404: "Not Found", 503: "Service Unavailable"}[status] in warning.getMessage()
            assert info.getMessage() == f"{collector.url} takes traces again"

    asyncio.run(scenario())


def test_a_collector_that_is_not_there_is_named_with_the_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "EXPORT_SECONDS", RETRY_ONCE_SECONDS)

    async def scenario() -> None:
        metrics = GatewayMetrics()
        tracing = Tracing(NOWHERE, metrics)
        record(tracing, 4, steps=2)
        await tracing.close()
        assert outcomes(metrics) == {"export_failed": 4}
        (warning,) = [record for record in caplog.records if record.name.startswith(("gateway", "opentel"))]
        assert "Connection refused" in warning.getMessage()

    asyncio.run(scenario())


def test_the_end_does_not_wait_for_a_collector_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing_module, "LAST_EXPORT_SECONDS", 0.1)
    monkeypatch.setattr(tracing_module, "EXPORT_SECONDS", 0.5)
    monkeypatch.setattr(tracing_module, "MAX_TRACES_PER_SECOND", 10_000)

    async def scenario() -> None:
        async with collecting() as collector:
            collector.gate.clear()
            metrics = GatewayMetrics()
            tracing = Tracing(collector.url, metrics)
            record(tracing, 3 * EXPORT_SPANS)
            await tracing.close()
            assert outcomes(metrics) == {"export_failed": 3 * EXPORT_SPANS}
            # Of three requests one was on its way; the others were not tried.
            assert len(collector.headers) <= 1

    asyncio.run(scenario())


def test_an_sdk_that_is_switched_off_contradicts_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with pytest.raises(StartupError, match="OTEL_SDK_DISABLED=true"):
        Tracing(NOWHERE, GatewayMetrics())
