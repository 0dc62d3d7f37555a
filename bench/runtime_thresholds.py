"""What the runtime must reach in the scenarios that compare the gateway with itself."""

from __future__ import annotations

from bench.probes import RESIDENTS, SHAPES, SLO_MS, TARGET_LOADS
from bench.results import Results
from bench.scenarios import SWEPT
from bench.verdict import Verdict

SHAPES_LIMIT = 1.5
"""The machine has twice the load, and a run that is on is not interrupted."""
FAIR_SHARE = 0.45
"""Fair is: while both have a backlog both get the same time, whatever is asked of them. For copies of one model that is
half of the rows; a tenth of it is left to chance."""
UNCROWDED_LIMIT = 0.5
"""Who asks for less than its share waits for a run of the other, not for its backlog."""
RELOAD_RSS_LIMIT = 1.05
RESIDENT_P99_LIMIT = 1.5
RESIDENT_FILES = 4.0
"""The weights as the file has them and as they are laid out for the processor, and as much again for buffers."""


def runtime_verdicts(results: Results) -> list[Verdict]:
    """Medians of rounds against each limit."""
    return [*_shapes(results), *_shares(results), *_target(results), *_batching(results), *_repository(results)]


def _shapes(results: Results) -> list[Verdict]:
    return [
        Verdict(
            f"p99 of rows of {extent} floats, with another shape / alone",
            *("at most", SHAPES_LIMIT, "x"),
            results.ratio("shapes", "p99_us", f"{name} together", f"{name} alone"),
        )
        for name, extent in SHAPES.items()
    ]


def _shares(results: Results) -> list[Verdict]:
    waits = results.median("shares", "small, a quarter", "p99_beside_large")
    return [
        Verdict(
            "10:1, both with a backlog: the small one's share of the answers",
            *("at least", FAIR_SHARE, "x"),
            results.median("shares", "small", "share"),
        ),
        Verdict(
            "10:1, the small one at half its share: answered of its requests",
            *("at least", 0.99, "x"),
            results.median("shares", "small, a quarter", "answered_share"),
        ),
        Verdict("10:1, the small one at half its share: p99 / the large one's", "at most", UNCROWDED_LIMIT, "x", waits),
    ]


def _target(results: Results) -> list[Verdict]:
    return [
        Verdict(
            f"slo_ms = {SLO_MS:g}, {share:.0%} of the capacity: p99 / slo_ms",
            *("at most", 1.0, "x"),
            results.median("target", f"{share:.0%} of the capacity", "slo_share"),
        )
        for share in TARGET_LOADS
    ]


def _batching(results: Results) -> list[Verdict]:
    return [
        Verdict(
            "p50, one connection, batch size learned / max_batch_rows = 1",
            *("at most", 1.05, "x"),
            results.ratio("lone", "p50_us", "learned", "one-row"),
        ),
        *(
            Verdict(
                f"rows/s, {name}, batch size learned / the best fixed one",
                *("at least", 0.95, "x"),
                results.ratio(scenario, "rows_per_second", "learned", "best fixed"),
            )
            for scenario, name in SWEPT.items()
        ),
    ]


def _repository(results: Results) -> list[Verdict]:
    one, many = "models: 1", f"models: {RESIDENTS}"
    added = results.paired("resident", "rss_bytes", many, one, lambda all_, single: (all_ - single) / (RESIDENTS - 1))
    file = results.median("resident", one, "file_bytes")
    return [
        Verdict(
            "a hundred loads and unloads: requests without an answer",
            *("at most", 0.0, ""),
            results.median("reload", "both", "unsuccessful"),
        ),
        Verdict(
            "a hundred loads and unloads: memory after / after the tenth",
            *("at most", RELOAD_RSS_LIMIT, "x"),
            results.median("reload", "both", "rss_growth"),
        ),
        Verdict(
            f"p99, {RESIDENTS} models at random / one model",
            *("at most", RESIDENT_P99_LIMIT, "x"),
            results.ratio("resident", "p99_us", many, one),
        ),
        Verdict(
            f"memory of each of {RESIDENTS} models beyond the first / its file",
            *("at most", RESIDENT_FILES, "x"),
            None if added is None or not file else added / file,
        ),
    ]
