"""Results as tables, on the terminal and in Markdown. The best of each column is marked, whoever it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bench import profile
from bench.columns import Column, columns_of
from bench.machine import peer_version
from bench.results import IN_PROCESS, Results
from bench.scenarios import SCENARIOS
from bench.verdict import Verdict

YARDSTICKS = frozenset({"echo", "prototype", "gateway-plain", IN_PROCESS})
"""Shown for comparison; nobody would choose between these and a server, so they win nothing."""

SORTED_BY = "rows-64"
"""Tables with a column of this scenario are sorted by it, the others by their first column."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; `best` holds the (row, column) of winners."""

    title: str
    head: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]]


def tables(results: Results) -> list[Table]:
    """All that a run measured."""
    found = [_table(results, title, columns) for title, columns in _layouts(results)]
    found = [table for table in found if table.rows] + _profile(results) + _features(results)
    return found + _thresholds(results) + _unavailable(results)


def _layouts(results: Results) -> list[tuple[str, list[Column]]]:
    measured = results.scenarios()
    layouts: list[tuple[str, list[Column]]] = []
    if single := [name for name in measured if name.startswith("rows-")]:
        layouts += [
            ("Single rows of 30 floats: CPU per request in µs, by connections", _by_connections(single, "cpu_us", 1)),
            ("Single rows of 30 floats: requests/s, by connections", _by_connections(single, "requests_per_second")),
            ("Where that CPU goes at 64 connections, in µs per request", _accounts()),
            ("Single rows of 30 floats: p50 in µs, by connections", _by_connections(single, "p50_us")),
            ("Single rows of 30 floats: p99 in µs, by connections", _by_connections(single, "p99_us")),
        ]
    for name in measured:
        if name not in single and name in SCENARIOS:
            layouts.append((_sentence(SCENARIOS[name].title), columns_of(name)))
    return layouts


def _by_connections(scenarios: list[str], value: str, digits: int = 0) -> list[Column]:
    is_less_better = value != "requests_per_second"
    return [Column(name.removeprefix("rows-"), name, value, is_less_better, digits=digits) for name in scenarios]


def _accounts() -> list[Column]:
    named = {"all processes": "cpu_us", "the first alone": "own_cpu_us", "its store, not counted in": "store_cpu_us"}
    return [Column(title, "rows-64", value, digits=1, has_winner=False) for title, value in named.items()]


def _table(results: Results, title: str, columns: list[Column]) -> Table:
    names = list(dict.fromkeys(name for column in columns for name in results.servers(column.scenario)))
    values = {name: [results.median(column.scenario, name, column.value) for column in columns] for name in names}
    place = next((index for index, column in enumerate(columns) if column.scenario == SORTED_BY), 0)
    first = columns[place]
    worst = float("inf") if first.is_less_better else float("-inf")
    names = [name for name in names if any(value is not None for value in values[name])]
    if first.has_winner:
        names.sort(key=lambda name: _or(values[name][place], worst), reverse=not first.is_less_better)
    best = _best(names, values, columns)
    versions = results.versions.get("peers", {})
    rows = [
        [
            _label(name, versions.get(name, {})),
            *(_figure(value, column) for value, column in zip(values[name], columns, strict=True)),
        ]
        for name in names
    ]
    return Table(title, ["", *(column.title for column in columns)], rows, best)


def _best(names: list[str], values: dict[str, list[float | None]], columns: list[Column]) -> frozenset[tuple[int, int]]:
    """The winner of each column, where at least two servers compete and differ."""
    winners = set()
    for index, column in enumerate(columns):
        choose: Callable[..., Any] = min if column.is_less_better else max
        competing = [
            (value, row)
            for row, name in enumerate(names)
            if name not in YARDSTICKS and (value := values[name][index]) is not None
        ]
        if column.has_winner and len({value for value, _ in competing}) > 1:
            first, _ = choose(competing)
            winners |= {(row, index + 1) for value, row in competing if value == first}
    return frozenset(winners)


def _features(results: Results) -> list[Table]:
    rows = []
    for other, what in (
        ("prototype", "routing, ids, metrics, sampling, limits, checks and errors: beyond the bare prototype"),
        ("gateway-plain", "a 90/10 route and 1 % sampling: beyond the gateway without them"),
    ):
        added = results.paired("rows-64", "cpu_us", "gateway", other, lambda ours, theirs: ours - theirs)
        if added is not None:
            rows.append([what, f"{added:+.1f}"])
    return [Table("What features cost, µs of CPU per request", ["", "µs"], rows, frozenset())] if rows else []


def _profile(results: Results) -> list[Table]:
    scenarios = [name for name in results.scenarios() if name.startswith(profile.SCENARIO)]
    return [_parts(results, scenarios), _wholes(results, scenarios)] if scenarios else []


def _parts(results: Results, scenarios: list[str]) -> Table:
    titles = {"gateway": "90/10", profile.ONE_VERSION: "one version", IN_PROCESS: "run alone"}
    columns = [(scenario, server) for scenario in scenarios for server in titles]
    head, rows = [""], [[title] for title in [*profile.PARTS.values(), "sum", "not timed"]]
    for scenario, server in columns:
        spent = [results.median(scenario, server, f"{part}_us") for part in profile.PARTS]
        total = sum(_or(value, 0.0) for value in spent)
        head.append(f"{scenario.removeprefix(profile.SCENARIO)}: {titles[server]}")
        for row, value in zip(rows, [*spent, total, results.median(scenario, server, "cpu_us")], strict=True):
            row.append("" if value is None else f"{value:.1f}")
        if server == "gateway":
            head.append("%")
            for row, value in zip(rows, [*spent, total, None], strict=True):
                row.append("" if value is None else f"{value / total:.0%}".rstrip("%"))
    return Table("CPU of a request by parts, in process, in µs, by connections", head, rows, frozenset())


def _wholes(results: Results, scenarios: list[str]) -> Table:
    def row(title: str, values: list[float | None], digits: int = 1) -> list[str]:
        return [title, *("" if value is None else f"{value:.{digits}f}" for value in values)]

    rows = [
        row("the bare prototype, µs", [results.median(name, "prototype", "cpu_us") for name in scenarios]),
        row("gateway / prototype", [results.ratio(name, "cpu_us", "gateway", "prototype") for name in scenarios], 2),
        row(
            "the second version's own batch, µs",
            [
                results.paired(name, "cpu_us", "gateway", profile.ONE_VERSION, lambda both, one: both - one)
                for name in scenarios
            ],
        ),
        row("rows in a run", [results.median(name, "gateway", "rows_per_run") for name in scenarios]),
        row(
            "to time a call, µs, not counted in",
            [results.median(name, IN_PROCESS, "timer_us") for name in scenarios],
            2,
        ),
    ]
    head = ["", *(name.removeprefix(profile.SCENARIO) for name in scenarios)]
    return Table("Beside it, not timed by parts, by connections", head, rows, frozenset())


def _thresholds(results: Results) -> list[Table]:
    rows = [_threshold_row(one) for one in results.thresholds]
    head = ["", "must be", "measured", ""]
    return [Table("What it must reach (medians of paired rounds)", head, rows, frozenset())] if rows else []


def _threshold_row(document: dict[str, Any]) -> list[str]:
    is_reached = document["is_reached"]
    verdict = Verdict(**{name: value for name, value in document.items() if name != "is_reached"})
    measured = "not measured" if verdict.measured is None else f"{verdict.measured:.3f} {verdict.unit}"
    word = {True: "reached", False: "NOT REACHED", None: "-"}[is_reached]
    return [verdict.what, f"{verdict.bound} {verdict.limit:g} {verdict.unit}", measured, word]


def _unavailable(results: Results) -> list[Table]:
    rows = [[what, reason] for what, reason in results.unavailable.items()]
    return [Table("Not measured", ["", "why"], rows, frozenset())] if rows else []


def _sentence(title: str) -> str:
    return title[0].upper() + title[1:]


def _label(name: str, pins: dict[str, str]) -> str:
    version = peer_version(name, pins)
    return f"{name} ({version})" if version else name


def _figure(value: float | None, column: Column) -> str:
    return "" if value is None else f"{value * column.scale:,.{column.digits}f}"


def _or(value: float | None, instead: float) -> float:
    return instead if value is None else value


def print_report(results: Results, console: Console) -> None:
    """On the terminal; in a file or a pipe as Markdown."""
    for table in tables(results):
        if not console.is_terminal:
            console.print("\n".join(_markdown_table(table)), markup=False, soft_wrap=True)
            continue
        console.print(f"\n[bold]{escape(table.title)}[/]")
        shown = RichTable(box=box.SIMPLE_HEAD)
        for index, head in enumerate(table.head):
            shown.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
        for row, cells in enumerate(table.rows):
            shown.add_row(*(_marked(cell, (row, index) in table.best) for index, cell in enumerate(cells)))
        console.print(shown)


def _marked(cell: str, is_best: bool) -> str:
    return f"[bold green]{escape(cell)}[/]" if is_best else escape(cell)


def markdown(results: Results, source: Path, plot: Path) -> str:
    """`bench/results/README.md`."""
    machine = results.machine
    lines = [
        "# Results",
        "",
        f"Made by `{results.command}` on {results.started[:10]} from [`{source.name}`]({source.name}); what each "
        "scenario means stands in [docs/benchmarks.md](../../docs/benchmarks.md). Bold is the best of its column.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}, commit "
        f"`{results.versions['commit']}`, load average {machine['load_before']:.1f} before the start.",
        "",
        f"![CPU per request and requests per second]({plot.name})",
    ]
    for table in tables(results):
        lines += _markdown_table(table)
    lines += ["", "## Commands", "", "```sh", *dict.fromkeys(results.commands.values()), "```", ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    lines = ["", f"## {table.title}", "", _markdown_row(table.head)]
    lines.append(_markdown_row(["---", *["--:"] * (len(table.head) - 1)]))
    for row, cells in enumerate(table.rows):
        bold = [f"**{cell}**" if (row, index) in table.best else cell for index, cell in enumerate(cells)]
        lines.append(_markdown_row(bold))
    return lines


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
