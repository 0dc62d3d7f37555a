from __future__ import annotations

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.telemetry.merging import Scrape, merged_statistics
from gateway.telemetry.metrics import (
    ERRORS,
    INSTRUMENTS,
    MODEL_READY,
    QUEUED_ROWS,
    ROUTE_INVALID,
    GatewayMetrics,
)
from gateway.telemetry.statistics import VersionStatistics
from gateway.types import ModelKey

KEY = ModelKey("m", "1")


def text_of(metrics: GatewayMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def worker(requests: int, queued: float, ready: float, invalid: float) -> GatewayMetrics:
    metrics = GatewayMetrics()
    metrics.version(KEY).requests["v"] += requests
    metrics.version(KEY).run.observe(np.full(requests, 0.001))
    metrics.count(ERRORS, 'odd "name"\\', "queue_full", amount=requests)
    metrics.add_gauges(
        lambda: [(QUEUED_ROWS, KEY, queued), (MODEL_READY, KEY, ready), (ROUTE_INVALID, ("m",), invalid)]
    )
    return metrics


class Given(Collector):
    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def collect(self) -> list[Metric]:
        return self._scrape.families()


def exposed(scrape: Scrape) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given(scrape))
    return generate_latest(registry).decode()


def test_one_worker_is_exposed_as_it_came() -> None:
    text = text_of(worker(3, 1, 1, 0))
    assert exposed(Scrape.of_text(text)) == text


def test_counters_and_histograms_add_up_and_gauges_do_what_their_instruments_say() -> None:
    together = Scrape.of_text(text_of(worker(3, 2, 1, 0)))
    together.add(Scrape.of_text(text_of(worker(4, 5, 0, 1))))
    assert exposed(together) == text_of(worker(7, 7, 0, 1))


def test_what_only_grows_outlives_its_worker_and_gauges_do_not() -> None:
    kept = exposed(Scrape.of_text(text_of(worker(3, 2, 1, 0))).counts())
    assert 'gateway_requests_total{model="m",variant="v",version="1"} 3.0' in kept
    assert 'gateway_run_duration_seconds_count{model="m",version="1"} 3.0' in kept
    assert "gateway_queue_rows" not in kept


def test_every_gauge_of_a_worker_can_be_merged() -> None:
    assert {instrument.merge for instrument in INSTRUMENTS} <= {"sum", "max", "min"}
    assert {instrument.merge for instrument in INSTRUMENTS if instrument.kind != "gauge"} == {"sum"}


def statistics(times: int, size: int, finished: float) -> VersionStatistics:
    recorded = VersionStatistics(lambda: finished + 1)
    for _ in range(times):
        recorded.record(2, size, 0.5, size, finished - 0.25, finished, 0.0)
    recorded.record_failure(finished)
    return recorded


def test_statistics_add_up_by_version_and_batch_size() -> None:
    one, other = statistics(3, 4, 10.0), statistics(1, 8, 10.0)
    other.record(2, 4, 0.5, 4, 9.0, 9.25, 0.0)
    documents = [{"model_stats": [found.document(KEY, 1_000.0)]} for found in (one, other)]
    documents[1]["model_stats"].append(VersionStatistics().document(ModelKey("m", "2"), 1_000.0))
    merged, alone = merged_statistics(documents)["model_stats"]
    assert (merged["inference_count"], merged["execution_count"]) == (3 * 4 + 8 + 4, 5)
    assert merged["inference_stats"]["success"]["count"] == 10
    assert merged["inference_stats"]["queue"] == {"count": 10, "ns": round(5 * 0.5e9)}
    assert merged["inference_stats"]["fail"]["count"] == 2
    assert [(entry["batch_size"], entry["compute_infer"]["count"]) for entry in merged["batch_stats"]] == [
        (4, 4),
        (8, 1),
    ]
    assert merged["last_inference"] == documents[0]["model_stats"][0]["last_inference"]
    assert merged.keys() == documents[0]["model_stats"][0].keys()
    assert alone["version"] == "2"
