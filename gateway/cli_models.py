"""`gateway models`: what is done to version folders before a gateway loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.runtime.trust import sign

app = typer.Typer(help="Prepare models for the gateway.", no_args_is_help=True)


@app.command("sign")
def sign_versions(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="<models>/<name>/<version>.", exists=True, file_okay=False),
    ],
    key: Annotated[Path, typer.Option(help="Ed25519 private key (PEM).", exists=True, dir_okay=False)],
) -> None:
    """Sign versions, once their files are what the manifest says, for gateways with `model_keys`."""
    for folder in folders:
        typer.echo(sign(folder.resolve(), key))
