"""What the command line prints: plain sentences and tables that a person can read, also through a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import orjson
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.types import JsonObject

STATUS_STYLES = {"ok": "green", "warning": "yellow", "alarm": "bold red", "drift": "bold red"}

TOP_FEATURES = 12
"""Features shown for each version, those with the largest effects first."""


def route_table(routes: Iterable[JsonObject]) -> RenderableType:
    """One line a variant."""
    table = _table("route", "revision", "variant", "version", "weight", "rules", right=("revision", "weight"))
    problems = []
    for route in routes:
        for index, variant in enumerate(route["variants"]):
            head = (route["name"], _revision(route["revision"])) if index == 0 else ("", "")
            rules = _rules(route) if index == 0 else ""
            table.add_row(*head, variant["name"], variant["version"], f"{variant['weight']:g} %", rules)
        if route.get("problem"):
            problems.append(Text(f"{route['name']}: not in force: {route['problem']}", "bold red"))
    return Group(table, *problems)


def history_table(changes: Iterable[JsonObject]) -> RenderableType:
    """One line a change, newest first."""
    table = _table("revision", "when", "who", "weights", "why", right=("revision",))
    for change in changes:
        weights = " ".join(f"{v['name']}={v['weight']:g}" for v in change["document"].get("variants", []))
        restores = change["restores"]
        why = ": ".join(filter(None, ("" if restores is None else f"back to {restores}", change["reason"])))
        table.add_row(str(change["revision"]), _local_time(change["changed_at"]), change["actor"], weights, why)
    return table


def diff_table(diff: JsonObject) -> RenderableType:
    """One line a difference."""
    old, new = (f"revision {diff[end]}" for end in ("from", "to"))
    if not diff["changes"]:
        return Text(f"{old} and {new} say the same")
    table = _table("path", old, new)
    for change in diff["changes"]:
        table.add_row(change["path"], *(_json(change[side]) for side in ("before", "after")))
    return table


def simulation_report(simulation: JsonObject) -> RenderableType:
    """Requests by variant, units by move, and what the log does not say."""
    if not simulation["requests"]:
        by_version = simulation["by_version"]
        return Text(f"the log holds no routed request of {simulation['name']} ({by_version} named their version)")
    period = " to ".join(_local_time(simulation[end]) for end in ("since", "until"))
    requests, certain = simulation["requests"], simulation["certain"]
    table = _table("variant", "then", "now", right=("then", "now"))
    for variant in simulation["variants"]:
        table.add_row(variant["name"], str(variant["then"]), f"{variant['now']:g}")
    parts: list[RenderableType] = [Text(f"{requests} logged requests, {period}; {certain} of them certain"), table]
    moved, units = sum(move["units"] for move in simulation["moves"]), simulation["units"]
    if units:
        parts.append(Text(f"of {units} sticky units that are known, {moved} would move ({moved / units:.2%})"))
        parts += [Text(f"  {move['from']} -> {move['to']}: {move['units']}") for move in simulation["moves"]]
    parts.append(Text(f"of the requests, {simulation['moved'] / requests:.2%} would get another variant"))
    if simulation["by_version"]:
        parts.append(Text(f"{simulation['by_version']} more named their version: no route has a say"))
    return Group(*parts, *(Text(f"note: {note}", "yellow") for note in simulation["notes"]))


def drift_report(models: Iterable[JsonObject]) -> RenderableType:
    """For each version its verdict, the features that moved most, and how it did on labels."""
    parts: list[RenderableType] = []
    for model in models:
        parts += [_version_report(model["name"], version) for version in model["versions"]]
        if model["performance"]:
            parts.append(_performance_table(model["performance"]))
        set_aside = model["collector"].get("dead_letters", 0)
        if set_aside:
            parts.append(Text(f"{set_aside} malformed stream entries were set aside", "yellow"))
    return Group(*parts)


def _version_report(name: str, version: JsonObject) -> RenderableType:
    verdict, window = version["verdict"], version["window"]
    progress = f"open window: {window['rows']} rows of at least {window['min_rows']}"
    title = Text.assemble((f"{name} {version['version']}", "bold"), "  ")
    if verdict is None:
        return Group(title.append("no verdict yet", "dim").append(f"  ({progress})"), "")
    title.append(verdict["status"], STATUS_STYLES.get(verdict["status"], "cyan"))
    title.append(f"  {verdict['rows']} rows until {_local_time(verdict['closed'])}; {progress}", "dim")
    reasons = [Text(f"  {reason}") for reason in verdict["reasons"]]
    return (
        Group(title, *reasons, _feature_table(verdict["features"]), "")
        if verdict["features"]
        else Group(title, *reasons, "")
    )


def _feature_table(features: list[JsonObject]) -> RenderableType:
    table = _table(
        "feature",
        "state",
        "KS",
        "PSI",
        "Cramér's V",
        "p (adjusted)",
        "missing",
        "detectable from",
        "n",
        right=("KS", "PSI", "Cramér's V", "p (adjusted)", "missing", "detectable from", "n"),
    )
    ranked = sorted(features, key=lambda f: max(f["ks"] or 0.0, f["psi"] or 0.0, f["cramers_v"] or 0.0), reverse=True)
    for feature in ranked[:TOP_FEATURES]:
        table.add_row(
            feature["name"],
            Text(feature["state"], STATUS_STYLES.get(feature["state"], "")),
            *(_number(feature[key]) for key in ("ks", "psi", "cramers_v")),
            "" if feature["adjusted_p"] is None else f"{feature['adjusted_p']:.1e}",
            f"{feature['missing_rate']:.1%}",
            _number(feature["minimum_detectable"]),
            str(feature["n"]),
        )
    rest = len(ranked) - TOP_FEATURES
    return Group(table, Text(f"  and {rest} more features that moved less", "dim")) if rest > 0 else table


def _performance_table(performance: list[JsonObject]) -> RenderableType:
    table = _table(
        "version", "variant", "labels", "accuracy", "MAE", "RMSE", right=("labels", "accuracy", "MAE", "RMSE")
    )
    for record in performance:
        table.add_row(
            record["version"],
            record["variant"] or "(asked for by version)",
            str(record["labelled"]),
            _number(record["accuracy"]),
            _number(record["mean_absolute_error"]),
            _number(record["root_mean_squared_error"]),
        )
    return table


def stdout_console() -> Console:
    """Standard output, where text is text; through a pipe, wide enough that no table is folded."""
    # Names and reasons are other people's words, and words in brackets are none of Rich's business.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160
    return console


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _rules(route: JsonObject) -> str:
    rules = [_rule(match) for match in route.get("match", [])]
    if "sticky" in route:
        rules.append(f"sticky by {_source(route['sticky'])}")
    if "holdout" in route:
        rules.append(f"holdout {route['holdout']:g} %")
    rules += [f"label {label} = {variant}" for label, variant in route.get("labels", {}).items()]
    rules += [f"alias {alias}" for alias in route.get("aliases", [])]
    return ", ".join(rules)


def _rule(match: JsonObject) -> str:
    """As `header x-beta equals "1" -> canary`."""
    operator, operand = next((key, match[key]) for key in ("equals", "in", "prefix", "present") if key in match)
    return f"{_source(match)} {operator} {_json(operand)} -> {match['variant']}"


def _source(entry: JsonObject) -> str:
    kind = next(key for key in ("header", "query", "cookie", "parameter", "id", "tenant") if key in entry)
    return kind if entry[kind] is True else f"{kind} {entry[kind]}"


def _json(value: object) -> str:
    return "" if value is None else orjson.dumps(value).decode()


def _revision(revision: int) -> str:
    return str(revision) if revision else "default"


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
