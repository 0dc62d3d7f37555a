"""The picture of a run: CPU per request and throughput of every server, as SVG without a library."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from bench.results import Results

SCENARIO = "rows-64"
WIDTH, LABELS, BAR, GAP = 860, 120, 22, 10
PANEL = (WIDTH - LABELS) // 2
BAR_ROOM = PANEL - 90
"""The rest holds the figure behind the bar."""
OURS, FLOOR, PEER = "#0b6e4f", "#9aa0a6", "#4a6fa5"
STYLE = "text{font:13px system-ui,sans-serif;fill:#202124}.head{font-weight:600}.note{fill:#5f6368;font-size:12px}"
PANELS = (("CPU per request, µs (less is better)", "cpu_us"), ("requests/s (more is better)", "requests_per_second"))


def svg(results: Results) -> str:
    """Bars on logarithmic scales: the servers differ by two orders of magnitude."""
    names = sorted(results.servers(SCENARIO), key=lambda name: results.median(SCENARIO, name, "cpu_us") or 0.0)
    height = 80 + len(names) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(0, 18, "Single rows of 30 floats, 64 connections", "head", 8),
        _text(0, height - 10, "logarithmic scales; medians over the rounds; echo runs no model", "note", 8),
    ]
    for row, name in enumerate(names):
        parts.append(_text(0, _top(row) + 16, name, "", 8))
    for index, (title, value) in enumerate(PANELS):
        parts += _panel(results, names, LABELS + index * PANEL, title, value)
    return "\n".join([*parts, "</svg>", ""])


def _panel(results: Results, names: list[str], left: int, title: str, value: str) -> list[str]:
    figures = [results.median(SCENARIO, name, value) or 0.0 for name in names]
    smallest, largest = min(figures, default=1.0), max(figures, default=1.0)
    parts = [_text(left, 40, title, "head")]
    for row, (name, figure) in enumerate(zip(names, figures, strict=True)):
        width = bar_width(figure, smallest, largest)
        colour = OURS if name.startswith("gateway") else FLOOR if name == "echo" else PEER
        parts.append(f'<rect x="{left}" y="{_top(row)}" width="{width}" height="{BAR}" fill="{colour}"/>')
        digits = 1 if figure < 1000 else 0
        parts.append(_text(left + width + 6, _top(row) + 16, f"{figure:,.{digits}f}"))
    return parts


def bar_width(figure: float, smallest: float, largest: float) -> int:
    """In pixels; the scale begins a factor of two below the smallest figure, so that every bar is seen."""
    if figure <= 0 or largest <= 0:
        return 0
    start = math.log(max(smallest, 1e-9) / 2)
    return round(BAR_ROOM * (math.log(figure) - start) / (math.log(largest) - start))


def _top(row: int) -> int:
    return 52 + row * (BAR + GAP)


def _text(x: int, y: int, text: str, style: str = "", indent: int = 0) -> str:
    return f'<text x="{x + indent}" y="{y}" class="{style}">{escape(text)}</text>'
