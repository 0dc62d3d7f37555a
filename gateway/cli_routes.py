"""`gateway routes`: what ops people do to routes, all of it through the admin API of a running gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from gateway import tables
from gateway.errors import StartupError
from gateway.opsclient import DEFAULT_URL, OpsClient
from gateway.settings import ENV_PREFIX, OPS_URL_VARIABLE
from gateway.types import JsonObject

routes_app = typer.Typer(help="Show and change who gets which version.", no_args_is_help=True)

ASSIGNMENT = re.compile(r"(?P<name>[^=:]+)=(?:(?P<version>[^:]+):)?(?P<weight>[0-9.]+)\Z")

OpsUrl = Annotated[str, typer.Option(help="Ops port of the gateway.", envvar=OPS_URL_VARIABLE)]
OpsToken = Annotated[
    str | None, typer.Option(help="Token of the ops port.", envvar=f"{ENV_PREFIX}OPS_TOKEN", show_envvar=True)
]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
Actor = Annotated[str | None, typer.Option(help="Who; kept in the history. The user and the machine without it.")]
FILE_OPTIONS: dict[str, Any] = {"exists": True, "dir_okay": False}


@routes_app.command("list")
def list_routes(ops_url: OpsUrl = DEFAULT_URL, ops_token: OpsToken = None) -> None:
    """Every route in force."""
    tables.stdout_console().print(tables.route_table(OpsClient(ops_url, ops_token).routes()))


@routes_app.command("show")
def show_route(
    name: str,
    revision: Annotated[int | None, typer.Option(min=0, help="An earlier one, from the history.")] = None,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """One route as JSON; edit it and hand it to `routes simulate` and `routes set --file`."""
    client = OpsClient(ops_url, ops_token)
    route = client.route(name)[0] if revision is None else client.revision(name, revision)
    problem = route.pop("problem", None)
    typer.echo(orjson.dumps(route, option=orjson.OPT_INDENT_2).decode())
    if problem:
        raise StartupError(f"the stored document is not in force: {problem}")


@routes_app.command("set")
def set_route(
    name: str,
    weights: Annotated[
        list[str] | None, typer.Argument(help="VARIANT=WEIGHT, or VARIANT=VERSION:WEIGHT for a new variant.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A whole route as JSON.", **FILE_OPTIONS)] = None,
    sticky: Annotated[str | None, typer.Option(help="Header that keeps a caller on its variant.")] = None,
    reason: Reason = "",
    actor: Actor = None,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """Change a route: `gateway routes set employment stable=1:90 canary=2:10`, later `stable=50 canary=50`.

    Weights are per cent and add up to 100. A label of the route will do for the variant that has it. Variants that are
    not named leave the route.
    """
    if bool(weights) == (file is not None):
        raise StartupError("give either VARIANT=WEIGHT arguments or --file, one of the two")
    client = OpsClient(ops_url, ops_token)
    route, tag = client.route(name)
    route.pop("problem", None)
    route.pop("revision", None)
    if file is not None:
        route = _read_json(file)
    else:
        route["variants"] = _reweighted(route["variants"], route.get("labels", {}), weights or [])
    if sticky is not None:
        route["sticky"] = {"header": sticky}
    stored = client.put_route(name, route, tag, reason, actor)
    tables.stdout_console().print(tables.route_table([stored]))


@routes_app.command("rollback")
def roll_back(
    name: str,
    to: Annotated[int | None, typer.Option(min=0, help="The revision; the last good one before without it.")] = None,
    reason: Reason = "",
    actor: Actor = None,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """Put an earlier document in force again, as a new revision.

    A second rollback goes on into the past: it does not bring back what the first one took away.
    """
    client = OpsClient(ops_url, ops_token)
    _, tag = client.route(name)
    stored = client.roll_back(name, to, tag, reason, actor)
    for skipped in stored["passed_over"]:
        _warn(f"revision {skipped['revision']} was passed over: {skipped['problem']}")
    console = tables.stdout_console()
    console.print(f"{name} is back to revision {stored['restored']}, as revision {stored['revision']}")
    console.print(tables.route_table([stored]))


@routes_app.command("diff")
def diff_route(
    name: str,
    old: Annotated[int | None, typer.Argument(min=0, help="Revision; the one before without it.")] = None,
    new: Annotated[int | None, typer.Argument(min=0, help="Revision; what is stored without it.")] = None,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """What changed between two revisions; without numbers, what the latest change changed."""
    tables.stdout_console().print(tables.diff_table(OpsClient(ops_url, ops_token).diff(name, old, new)))


@routes_app.command("history")
def route_history(
    name: str,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """Who changed a route, when and why; newest first."""
    tables.stdout_console().print(tables.history_table(OpsClient(ops_url, ops_token).history(name, limit)))


@routes_app.command("simulate")
def simulate_route(
    file: Annotated[Path, typer.Argument(help="A whole route as JSON.", **FILE_OPTIONS)],
    route: Annotated[str | None, typer.Option(help="Whose log; the route that the file names without it.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Logged requests, the newest.")] = 10_000,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """Who would move if the file were in force: it is replayed over the request log, and nothing is changed."""
    document = _read_json(file)
    name = route or document.get("name")
    if not isinstance(name, str):
        raise StartupError(f"{file}: names no route; say whose log with --route")
    tables.stdout_console().print(
        tables.simulation_report(OpsClient(ops_url, ops_token).simulate(name, document, limit))
    )


def _warn(text: str) -> None:
    Console(stderr=True, highlight=False).print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def _reweighted(current: list[JsonObject], labels: JsonObject, assignments: list[str]) -> list[JsonObject]:
    """The variants that the assignments name. Known ones keep their place: the order decides who moves."""
    versions = {variant["name"]: variant["version"] for variant in current}
    places = {name: place for place, name in enumerate(versions)}
    variants = []
    for text in assignments:
        matched = ASSIGNMENT.match(text)
        if matched is None:
            raise StartupError(f"{text!r}: expected VARIANT=WEIGHT or VARIANT=VERSION:WEIGHT, such as canary=2:10")
        name = labels.get(matched["name"], matched["name"])
        version = matched["version"] or versions.get(name)
        if version is None:
            known = ", ".join(versions)
            raise StartupError(f"{text!r}: {name!r} is new (variants: {known}); say its version: {name}=VERSION:WEIGHT")
        variants.append({"name": name, "version": version, "weight": _weight(matched["weight"], text)})
    return sorted(variants, key=lambda variant: places.get(variant["name"], len(places)))


def _weight(text: str, assignment: str) -> float | int:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise StartupError(f"{assignment!r}: {text!r} is not a number") from None


def _read_json(file: Path) -> JsonObject:
    try:
        document = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise StartupError(f"{file}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise StartupError(f"{file}: expected a JSON object")
    return document
