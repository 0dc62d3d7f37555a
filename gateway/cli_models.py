"""`gateway models`: what concerns the model repository itself; no gateway need be running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.errors import StartupError
from gateway.settings import Settings, load_settings

if TYPE_CHECKING:
    from gateway.runtime.repository import VersionFolder

models_app = typer.Typer(help="Look into the model repository, and prepare it.", no_args_is_help=True)

MAX_ROUNDS = 1000


@models_app.command("sign")
def sign_versions(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="<models>/<name>/<version>.", exists=True, file_okay=False),
    ],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM).", exists=True, dir_okay=False)],
) -> None:
    """Sign versions, once their files are what the manifest says, for gateways with `model_keys`."""
    from gateway.runtime.trust import sign  # noqa: PLC0415 -- as below

    for folder in folders:
        typer.echo(sign(folder.resolve(), key))


@models_app.command()
def tune(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str | None, typer.Option(help="Its version; the highest without it.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to measure, about.")] = 10.0,
    models: Annotated[Path | None, typer.Option(help=Settings.model_fields["models"].description)] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where a gateway keeps what it learned.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.", exists=True, dir_okay=False)] = None,
) -> None:
    """Measure how a model is run best, and what a fixed batch size would cost instead; nothing is changed."""
    # `gateway --help` need not load ONNX Runtime.
    from gateway import tables, tuning_report  # noqa: PLC0415
    from gateway.runtime.learned import learned_file, read_learned  # noqa: PLC0415
    from gateway.runtime.repository import scan  # noqa: PLC0415
    from gateway.runtime.session import choose_device  # noqa: PLC0415
    from gateway.runtime.trust import verify  # noqa: PLC0415
    from gateway.runtime.warming import LEARNED_FOLDER, Trial  # noqa: PLC0415

    settings = load_settings({"models": models, "data_dir": data_dir}, config)
    folder = _find(scan(settings.models), name, version)
    verified = verify(folder.folder, settings.model_keys)
    trial = Trial(folder, choose_device(settings.device), settings.threads, verified=verified)
    batching = folder.config.batching
    sizes = tuning_report.sizes_to_measure(batching)
    samples = trial.measured(sizes if trial.layout.shares_runs else (1,), budget=seconds, rounds=MAX_ROUNDS)
    if not samples:
        raise StartupError(f"{folder.key} refuses rows of zeros, so there is nothing to measure it with")
    path = learned_file(settings.data_dir / LEARNED_FOLDER, folder.key)
    learned = read_learned(path, trial.circumstances, trial.core_uses)
    report = tuning_report.report(folder.key, batching, trial.policy, samples, learned)
    tables.stdout_console().print(report)


def _find(folders: list[VersionFolder], name: str, version: str | None) -> VersionFolder:
    """The version asked for, or the highest. Raises `StartupError` naming those that there are."""
    versions = [folder for folder in folders if folder.key.name == name]
    if not versions:
        known = ", ".join(dict.fromkeys(folder.key.name for folder in folders))
        raise StartupError(f"unknown model {name!r}; models: {known}")
    for folder in versions:
        if folder.key.version == version:
            return folder
    if version is not None:
        known = ", ".join(folder.key.version for folder in versions)
        raise StartupError(f"unknown version {version!r} of model {name!r}; versions: {known}")
    return versions[-1]
