"""What `gateway models tune` prints: the curve as a table and a plot, the choice, and what other choices would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.runtime.choice import RUNS_WAITED_FOR, Point, choose
from gateway.runtime.learned import LearnedState
from gateway.runtime.manifest import LEARNED_ROWS_LIMIT, BatchingConfig
from gateway.runtime.tuner import BatchPolicy, ShapeTuner, Tuner
from gateway.runtime.tuning import CoreUse, Samples, best_core_uses, powers_of_two
from gateway.types import ModelKey

COMPARED = (1, 8, 32)
"""Fixed numbers of rows that operators tend to choose; the largest and the configured ones are compared as well."""
TAIL = 0.99
PLOT_WIDTH = 40


def sizes_to_measure(batching: BatchingConfig) -> tuple[int, ...]:
    """Rows of the curve, ascending: those that may be learned, and those that operators fixed."""
    limit = min(LEARNED_ROWS_LIMIT, batching.max_queue_rows)
    fixed = batching.fixed_rows or ()
    return tuple(sorted({*powers_of_two(limit), *(size for size in COMPARED if size <= limit), *fixed}))


def report(
    key: ModelKey,
    batching: BatchingConfig,
    policy: BatchPolicy,
    samples: Mapping[CoreUse, Samples],
    learned: LearnedState | None,
) -> RenderableType:
    """For a terminal. `samples` are not empty; `learned` is what a gateway knew of the version."""
    core_use = best_core_uses(samples, policy.slo)[0]
    parts: list[RenderableType] = [Text(f"{key}, rows of zeros", "bold")]
    for measured, curve in sorted(samples.items()):
        note = ", the better" if measured == core_use and len(samples) > 1 else ""
        parts += [Text(f"\n{measured}{note}"), _curve(points_of(curve), measured, policy)]
    points = points_of(samples[core_use])
    parts += [
        _plot(points, core_use),
        _choice(points, core_use, batching, policy),
        _fixed(points, core_use, batching, policy),
    ]
    if learned is not None:
        parts.append(_learned(learned, policy))
    return Group(*parts)


def points_of(samples: Samples) -> list[Point]:
    """Mean and 99th percentile of the samples, by ascending rows."""
    return [Point(rows, fmean(seconds), _quantile(seconds, TAIL)) for rows, seconds in sorted(samples.items())]


def _quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that a share `q` of all is not above."""
    return sorted(values)[math.ceil(q * len(values)) - 1]


def _chosen(points: Sequence[Point], policy: BatchPolicy) -> Point:
    """Of the sizes that `model.toml` allows."""
    return choose([point for point in points if point.rows in policy.sizes] or points, slo=policy.slo)


def _curve(points: Sequence[Point], core_use: CoreUse, policy: BatchPolicy) -> Table:
    table = _table("rows", "ms mean", "ms p99", "ms p99 with wait", "rows/s", "")
    chosen = _chosen(points, policy)
    for point in points:
        misses = policy.slo is not None and point.latency > policy.slo
        mark = "chosen" if point == chosen else ""
        remark = "misses slo_ms" if misses else ""
        table.add_row(*_numbers(point, core_use), ", ".join(filter(None, (mark, remark))))
    return table


def _plot(points: Sequence[Point], core_use: CoreUse) -> Text:
    """A bar for the rate, linear, and marks for the times, logarithmic."""
    text = Text(f"\n{'rows':>5}  {'rows/s':<{PLOT_WIDTH}}  ms, logarithmic: o mean, | p99\n")
    best = max(point.rate(core_use.runs) for point in points)
    low, high = math.log(points[0].seconds), math.log(max(point.p99 for point in points))
    for point in points:
        bar = "#" * max(1, round(PLOT_WIDTH * point.rate(core_use.runs) / best))
        marks = [" "] * PLOT_WIDTH
        for mark, seconds in (("|", point.p99), ("o", point.seconds)):
            place = (math.log(seconds) - low) / (high - low) if high > low else 0.0
            marks[max(0, min(PLOT_WIDTH - 1, round(place * (PLOT_WIDTH - 1))))] = mark
        text.append(f"{point.rows:>5}  {bar:<{PLOT_WIDTH}}  {''.join(marks).rstrip()}\n")
    return text


def _choice(points: Sequence[Point], core_use: CoreUse, batching: BatchingConfig, policy: BatchPolicy) -> Text:
    chosen = _chosen(points, policy)
    how = "learned" if batching.fixed_rows is None else "of those that model.toml allows"
    text = Text(f"choice: {core_use}, up to {chosen.rows} rows in a run ({how})", "bold")
    if policy.slo is not None:
        verb = "keeps" if chosen.latency <= policy.slo else "cannot keep"
        text.append(
            f"; {verb} slo_ms {batching.slo_ms:g}: {RUNS_WAITED_FOR} runs at p99 are {chosen.latency * 1e3:.2f} ms"
        )
    return text


def _fixed(points: Sequence[Point], core_use: CoreUse, batching: BatchingConfig, policy: BatchPolicy) -> Table:
    table = _table("fixed at", "rows/s", "of the choice", "ms p99 with wait", "")
    chosen = _chosen(points, policy)
    known = {point.rows: point for point in points}
    configured = batching.fixed_rows or ()
    sizes = sizes_to_measure(batching)
    for rows in sorted({sizes[-1], *(set(COMPARED) & set(sizes)), *configured}):
        remarks = ["in model.toml"] if rows in configured else []
        point = known.get(rows)
        if point is None:
            table.add_row(
                str(rows), "", "", "", ", ".join([*remarks, "not measured: too slow, or too large to be tried"])
            )
            continue
        if policy.slo is not None and point.latency > policy.slo:
            remarks.append("misses slo_ms")
        rate = point.rate(core_use.runs)
        share = f"{rate / chosen.rate(core_use.runs):.0%}"
        table.add_row(str(rows), f"{rate:,.0f}", share, f"{point.latency * 1e3:.2f}", ", ".join(remarks))
    return table


def _learned(state: LearnedState, policy: BatchPolicy) -> RenderableType:
    """The shape that a gateway ran last."""
    tuner = Tuner(policy)
    state.restore(tuner)
    shape: ShapeTuner = tuner.last
    points = [shape.point(int(size.rows)) for size in shape.cost.classes]
    a, b = shape.cost.line
    title = (
        f"\nlearned from traffic: {state.core_use}, up to {shape.rows} rows in a run; "
        f"{a * 1e3:.3f} ms + {b * 1e3:.4f} ms a row; {len(state.shapes)} shapes"
    )
    table = _table("rows", "ms mean", "ms p99", "ms p99 with wait", "rows/s")
    for point in points:
        table.add_row(*_numbers(point, state.core_use))
    return Group(Text(title, "bold"), table)


def _numbers(point: Point, core_use: CoreUse) -> tuple[str, ...]:
    times = (f"{seconds * 1e3:.3f}" for seconds in (point.seconds, point.p99, point.latency))
    return str(point.rows), *times, f"{point.rate(core_use.runs):,.0f}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
