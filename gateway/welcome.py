"""What `gateway serve` says on the terminal once it serves: what is where, and what to try next."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from pathlib import Path

import orjson
from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.lifecycle import Started
from gateway.opsclient import DEFAULT_URL
from gateway.tables import stdout_console
from gateway.types import JsonObject

logger = logging.getLogger(__name__)


def announce(started: Started) -> None:
    """Print it to standard output; where logs are JSON, for a machine, log one line instead."""
    summary = started.summary
    if started.settings.log_format == "json":
        models = ", ".join(f"{name}/{version}" for name, versions in summary.models.items() for version in versions)
        grpc = f", grpc on {started.grpc_address}" if started.grpc_address is not None else ""
        urls = f"{started.public_url}{grpc}, ops on {started.ops_url}"
        logger.info("serving %s on %s, device %s", models, urls, summary.device)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_row("predictions", started.public_url)
    if started.grpc_address is not None:
        facts.add_row("grpc", started.grpc_address)
    facts.add_row("try them", f"{started.public_url}/try")
    facts.add_row("ops", f"{started.ops_url}  (routes, drift, /metrics)")
    facts.add_row("store", started.store)
    where = " (engine process)" if started.settings.engine == "process" else ""
    facts.add_row("device", f"{summary.device}{where}")
    if started.settings.workers > 1:
        facts.add_row("workers", str(started.settings.workers))
    for index, (name, versions) in enumerate(summary.models.items()):
        facts.add_row("models" if index == 0 else "", f"{name}  (versions {', '.join(versions)})")
    for key, reason in summary.refused.items():
        facts.add_row(Text("refused", "red"), f"{key}: {reason}")
    console = stdout_console()
    console.print(Panel(facts, title="gateway", title_align="left", box=box.ROUNDED, expand=False))
    if summary.example is not None:
        console.print("Ask for a prediction:\n")
        console.print(_curl(started.public_url, *summary.example), soft_wrap=True)
    console.print(f"\nThen:\n\n{_next_steps(started)}\n\nCtrl-C stops everything.", soft_wrap=True)


def _curl(public_url: str, model: str, body: JsonObject) -> str:
    """A line that works when pasted."""
    return f"curl -s -i {public_url}/v2/models/{model}/infer -d {shlex.quote(orjson.dumps(body).decode())}"


def _next_steps(started: Started) -> str:
    """Commands that work in this shell, with this gateway."""
    is_module = Path(sys.argv[0]).name == "__main__.py"
    command = "gateway" if shutil.which("gateway") else "python -m gateway" if is_module else sys.argv[0]
    url = "" if started.ops_url == DEFAULT_URL else f" --ops-url {started.ops_url}"
    return f"{command} routes list{url}\n{command} drift{url}"
