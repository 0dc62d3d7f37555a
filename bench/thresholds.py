"""What the gateway must reach, and whether a run reached it."""

from __future__ import annotations

from bench.results import IN_PROCESS, Results
from bench.runtime_thresholds import runtime_verdicts
from bench.verdict import Verdict

RSS_GROWTH_LIMIT = 1.10
"""Memory counts as flat if twice the capacity, for a whole round, adds less than a tenth to it."""


def evaluate(results: Results) -> list[Verdict]:
    """Medians of paired rounds against each limit."""
    return [*_against_peers(results), *runtime_verdicts(results)]


def _against_peers(results: Results) -> list[Verdict]:
    return [
        *_single_rows(results),
        Verdict(
            "CPU per request, 150,528 floats in JSON / orjson + numpy in process",
            *("at most", 0.45, "x"),
            results.ratio("image", "cpu_us", "gateway", IN_PROCESS),
        ),
        Verdict(
            "CPU of 150,528 floats in binary beyond one row, one connection / a copy of the body in memory",
            *("at most", 1.5, "x"),
            _binary(results),
        ),
        Verdict(
            "rows/s, compute-bound model, 32 connections / the best of bare session.run",
            *("at least", 0.95, "x"),
            results.ratio("compute", "rows_per_second", "gateway", IN_PROCESS),
        ),
        *_overload(results, "overload", "compute-bound"),
        *_overload(results, "overload-decode", "64 rows a request"),
        Verdict("idle", "at most", 1.0, "% of a core", results.median("idle", "gateway", "idle_core_percent")),
    ]


def _single_rows(results: Results) -> list[Verdict]:
    limits = {"echo": 0.95, "mosec": 0.50, "fastapi": 0.10, "prototype": 1.35}
    ratios = [
        Verdict(
            f"CPU per request, single rows, 64 connections / {peer}", "at most", limit, "x", _against(results, peer)
        )
        for peer, limit in limits.items()
    ]
    features = results.paired("rows-64", "cpu_us", "gateway", "prototype", lambda ours, bare: ours - bare)
    return [
        *ratios,
        Verdict("p50, one connection, beyond echo and the model's run", "at most", 40.0, "µs", _added_p50(results)),
        Verdict(
            "routing, metrics, ids, 1 % sampling and all else beyond the prototype", "at most", 3.0, "µs", features
        ),
    ]


def _against(results: Results, peer: str) -> float | None:
    """Against the peer at its better setting."""
    ratios = [results.ratio("rows-64", "cpu_us", "gateway", name) for name in (peer, f"{peer}-10ms")]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _added_p50(results: Results) -> float | None:
    run = results.median("rows-1", IN_PROCESS, "p50_us")
    beyond_echo = results.paired("rows-1", "p50_us", "gateway", "echo", lambda ours, echo: ours - echo)
    return None if run is None or beyond_echo is None else beyond_echo - run


def _binary(results: Results) -> float | None:
    """Both requests include a model's run; the small one's is the longer, and taken off."""
    run = results.median("rows-1", IN_PROCESS, "cpu_us")
    small = results.median("rows-1", "gateway", "cpu_us")
    large = results.median("image-binary", "gateway", "cpu_us")
    copy = results.median("image-binary", IN_PROCESS, "cpu_us")
    if small is None or large is None or copy is None or run is None:
        return None
    return (large - (small - run)) / copy


def _overload(results: Results, scenario: str, name: str) -> list[Verdict]:
    def median(value: str) -> float | None:
        return results.median(scenario, "gateway", value)

    refusal = median("refusal_p99_us")
    return [
        Verdict(f"twice the capacity, {name}: goodput / peak", "at least", 0.9, "x", median("goodput_share")),
        Verdict(
            f"twice the capacity, {name}: p99 of refusals",
            *("at most", 10.0, "ms"),
            # A refusal that never came has no latency.
            None if refusal is None else refusal / 1000,
        ),
        Verdict(
            f"twice the capacity, {name}: refusals with Retry-After", "at least", 1.0, "x", median("retry_after_share")
        ),
        Verdict(
            f"twice the capacity, {name}: memory after / before",
            *("at most", RSS_GROWTH_LIMIT, "x"),
            median("rss_growth"),
        ),
    ]
