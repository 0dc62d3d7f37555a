from __future__ import annotations

from gateway.telemetry.statistics import VersionStatistics
from gateway.types import JsonObject, ModelKey

NOW = 1_700_000_000.0
KEY = ModelKey("m", "1")


class Clock:
    """Monotonic seconds, set by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def durations(document: JsonObject) -> dict[str, tuple[int, int]]:
    return {name: (stat["count"], stat["ns"]) for name, stat in document["inference_stats"].items()}


def test_what_did_nothing_yet_has_every_key_with_zeros() -> None:
    document = VersionStatistics().document(KEY, NOW)
    assert (document["name"], document["version"], document["last_inference"]) == ("m", "1", 0)
    assert (document["inference_count"], document["execution_count"]) == (0, 0)
    names = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]
    assert durations(document) == dict.fromkeys(names, (0, 0))
    assert document["response_stats"] == {}
    assert document["batch_stats"] == document["memory_usage"] == []


def test_durations_are_summed_over_requests_and_those_of_a_batch_size_over_runs() -> None:
    clock = Clock()
    statistics = VersionStatistics(clock)
    # Two requests with three rows that waited 0.25 and 0.5 s, ran for 1 s and were answered in 0.125 s.
    statistics.record(2, 3, 0.75, 3, 10.0, 11.0, 11.125)
    # One request with three rows: no wait, 2 s, answered at once.
    statistics.record(1, 3, 0.0, 3, 20.0, 22.0, 22.0)
    clock.now = 25.0
    document = statistics.document(KEY, NOW)
    assert document["inference_count"] == 6
    assert document["execution_count"] == 2
    assert document["last_inference"] == (NOW - 3.0) * 1000
    assert durations(document) == {
        "success": (3, ns(0.75 + 2 * 1.0 + 2.0 + 2 * 0.125)),
        "fail": (0, 0),
        "queue": (3, ns(0.75)),
        "compute_input": (3, 0),
        "compute_infer": (3, ns(4.0)),
        "compute_output": (3, ns(0.25)),
        "cache_hit": (0, 0),
        "cache_miss": (0, 0),
    }
    (batch,) = document["batch_stats"]
    assert batch == {
        "batch_size": 3,
        "compute_input": {"count": 2, "ns": 0},
        "compute_infer": {"count": 2, "ns": ns(3.0)},
        "compute_output": {"count": 2, "ns": ns(0.125)},
    }


def test_batch_sizes_are_told_in_order() -> None:
    statistics = VersionStatistics(Clock())
    for rows in (8, 1, 8, 64):
        statistics.record(1, rows, 0.0, rows, 0.0, 0.0, 0.0)
    batches = statistics.document(KEY, NOW)["batch_stats"]
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in batches] == [(1, 1), (8, 2), (64, 1)]


def test_a_run_whose_callers_all_left_is_an_execution_of_no_requests() -> None:
    statistics = VersionStatistics(Clock())
    statistics.record(0, 0, 0.0, 4, 0.0, 0.0, 0.0)
    document = statistics.document(KEY, NOW)
    assert (document["inference_count"], document["execution_count"]) == (0, 1)
    assert durations(document)["success"] == (0, 0)


def test_failures_count_with_the_time_that_they_took() -> None:
    clock = Clock()
    statistics = VersionStatistics(clock)
    clock.now = 3.0
    statistics.record_failure(1.0)
    statistics.record_failure(2.5)
    document = statistics.document(KEY, NOW)
    assert durations(document)["fail"] == (2, ns(2.5))
    assert document["last_inference"] == 0
