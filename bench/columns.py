"""Which values of a scenario are shown, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from bench.scenarios import SCENARIOS, SWEPT

Shown: TypeAlias = tuple[str, str, dict[str, Any]]
"""Title, value, and what else a `Column` says."""

MB: dict[str, Any] = {"scale": 1e-6, "digits": 1}
MS: dict[str, Any] = {"scale": 1e-3, "digits": 1}
RATIO: dict[str, Any] = {"digits": 3}
OPEN: list[Shown] = [
    ("requests/s", "requests_per_second", {}),
    ("p50 ms", "p50_us", {**MS, "digits": 2}),
    ("p99 ms", "p99_us", {**MS, "digits": 2}),
    ("refused", "refused", {}),
    ("not answered", "lost", {}),
]
CAPACITY: Shown = ("capacity/s", "capacity_per_second", {})
ROWS: Shown = ("rows in a run", "rows", {})
RUNTIME: dict[str, list[Shown]] = {
    "shapes": OPEN,
    "shares": [*OPEN, ("share", "share", RATIO), CAPACITY],
    "target": [*OPEN, ("p99 / slo_ms", "slo_share", RATIO), CAPACITY, ROWS],
    "lone": [("p50 µs", "p50_us", {"digits": 1}), ("p99 µs", "p99_us", {"digits": 1})],
    "reload": [
        *OPEN,
        ("unsuccessful", "unsuccessful", {}),
        ("cycles", "cycles", {}),
        ("ms a cycle", "cycle_ms", {}),
        ("RSS before MB", "rss_before_bytes", MB),
        ("RSS after MB", "rss_after_bytes", MB),
    ],
    "resident": [*OPEN, ("RSS MB", "rss_bytes", MB)],
}
SWEEP: list[Shown] = [
    ROWS,
    ("swept, rows/s", "swept_rows_per_second", {}),
    ("by turns, rows/s", "rows_per_second", {}),
]


@dataclass(frozen=True, slots=True)
class Column:
    """One value, taken as the median over the rounds of a scenario."""

    title: str
    scenario: str
    value: str
    is_less_better: bool = True
    scale: float = 1.0
    digits: int = 0
    has_winner: bool = True
    """Less of it is better, or more; a count or a part of another column is neither."""


def columns_of(scenario: str) -> list[Column]:
    """Of the scenario's own table."""
    load = SCENARIOS[scenario].load
    if load == "runtime":
        return [Column(title, scenario, value, has_winner=False, **how) for title, value, how in _runtime(scenario)]
    if load == "idle":
        return [Column("% of a core", scenario, "idle_core_percent", digits=2)]
    if load == "overload":
        return [
            Column("capacity/s", scenario, "capacity_per_second", is_less_better=False),
            Column("offered/s", scenario, "offered_per_second", is_less_better=False),
            Column("goodput/s", scenario, "goodput_per_second", is_less_better=False),
            Column("refused", scenario, "refused"),
            Column("refusal p99 ms", scenario, "refusal_p99_us", scale=1e-3, digits=1),
            Column("answer p99 ms", scenario, "p99_us", scale=1e-3, digits=1),
            Column("lost", scenario, "lost"),
            Column("RSS before MB", scenario, "rss_before_bytes", scale=1e-6, digits=1),
            Column("RSS after MB", scenario, "rss_after_bytes", scale=1e-6, digits=1),
        ]
    is_open = load == "open"
    rate = "requests_per_second" if is_open else "rows_per_second"
    percentiles = [Column(f"p{name} µs", scenario, f"p{name.replace('.', '')}_us") for name in ("50", "99", "99.9")]
    return [
        Column("CPU µs/request", scenario, "cpu_us", digits=1),
        Column(
            rate.replace("_per_second", "/s"), scenario, rate, is_less_better=False, digits=1, has_winner=not is_open
        ),
        *percentiles,
        *([Column("not answered", scenario, "lost", has_winner=False)] if is_open else []),
    ]


def _runtime(scenario: str) -> list[Shown]:
    return SWEEP if scenario in SWEPT else RUNTIME[scenario]
