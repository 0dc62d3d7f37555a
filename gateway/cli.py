"""The `gateway` command. The options of `serve` and `collect` are generated from `settings.py`."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import orjson
import typer
import uvloop
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from gateway import __version__, tables
from gateway.cli_models import models_app
from gateway.cli_routes import OpsToken, OpsUrl, routes_app
from gateway.errors import StartupError
from gateway.opsclient import DEFAULT_URL, OpsClient
from gateway.settings import Settings, load_settings
from gateway.telemetry.logging import configure

app = typer.Typer(
    help="A model serving gateway for ONNX models.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
app.add_typer(routes_app, name="routes")
app.add_typer(models_app, name="models")

COLLECT_OPTIONS = ("models", "redis_url", "consumer_name", "log_level", "log_format")
T = TypeVar("T")


def main() -> None:
    """Entry point: a mistake of the user's ends with one line and exit code 2, not with a traceback."""
    # The first process of a container ignores SIGTERM until somebody handles it, and imports take a second.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        app()
    except StartupError as error:
        Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)


def _with_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--config` and one option for each setting; unset options arrive as None."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {name: Settings.model_fields[name] for name in names or Settings.model_fields}
        parameters = [_parameter(name, field) for name, field in fields.items()]
        config = typer.Option("--config", help="TOML file with settings.", exists=True, dir_okay=False)
        parameters.append(_keyword("config", Annotated[Path | None, config]))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind = _option_type(field.annotation)
    flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    default = "" if field.default is None else f" [default: {_plain(field.default)}]"
    option = typer.Option(flags, help=f"{field.description}{default}", show_default=False)
    return _keyword(name, Annotated[kind | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option_type(annotation: Any) -> Any:
    """What the command line parses; limits and choices are checked by the settings themselves, in one place."""
    if get_origin(annotation) is Literal:
        return str
    kinds = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return str if kinds[0] is SecretStr else kinds[0]


def _plain(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


@app.command()
@_with_options()
def serve(**options: Any) -> None:
    """Serve the models, with an embedded store and a collector unless told otherwise."""
    settings = load_settings(options, options.pop("config"))
    configure(settings.log_level, settings.log_format)
    # `gateway --help` and `gateway routes` need not load the server.
    from gateway.welcome import announce  # noqa: PLC0415

    if settings.workers > 1:
        from gateway.supervisor import supervise  # noqa: PLC0415

        sys.exit(_run(supervise(settings, announce)))
    from gateway.server import serve as run  # noqa: PLC0415

    _run(run(settings, announce))


@app.command(hidden=True)
def worker(
    index: int,
    socket: Annotated[Path, typer.Option()],
    supervisor: Annotated[Path, typer.Option()],
    versions: Annotated[str | None, typer.Option(help="JSON list of MODEL/VERSION; all without it.")] = None,
) -> None:
    """One of several workers; `gateway serve --workers` starts it, with the settings in the environment."""
    from gateway.server import serve_as_worker  # noqa: PLC0415
    from gateway.wiring import Place  # noqa: PLC0415

    settings = load_settings({})
    configure(settings.log_level, settings.log_format, index)
    names = frozenset(orjson.loads(versions)) if versions is not None else None
    _run(serve_as_worker(settings, Place(socket, supervisor, names)))


@app.command()
@_with_options(*COLLECT_OPTIONS)
def collect(**options: Any) -> None:
    """Run a collector on its own: read the streams, judge the windows, count the labels."""
    try:
        from gateway.collecting import collect as run  # noqa: PLC0415 -- its libraries are an extra
    except ImportError as error:
        raise StartupError(f"{error.name} is missing: `pip install 'model-gateway[collector]'`") from error
    settings = load_settings(options, options.pop("config"))
    if settings.redis_url is None:
        raise StartupError("collect needs the gateway's store: --redis-url redis://HOST:PORT")
    configure(settings.log_level, settings.log_format)
    _run(run(settings.redis_url, settings.models, settings.consumer_name))


@app.command(hidden=True)
def engine() -> None:
    """Owns the sessions; `gateway serve --engine process` starts it, with the settings in the environment."""
    from gateway.engine_process import run_engine  # noqa: PLC0415 -- as above

    settings = load_settings({})
    configure(settings.log_level, settings.log_format)
    _run(run_engine(settings))


@app.command()
def drift(
    model: Annotated[str | None, typer.Argument(help="One model; all of them without it.")] = None,
    ops_url: OpsUrl = DEFAULT_URL,
    ops_token: OpsToken = None,
) -> None:
    """Show what the collector says about each version's traffic, and accuracy on labels."""
    tables.stdout_console().print(tables.drift_report(OpsClient(ops_url, ops_token).drift(model)))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _run(process: Coroutine[None, None, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(process)
