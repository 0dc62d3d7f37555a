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

from gateway.opsclient import DEFAULT_URL
from gateway.runtime.examples import example_row
from gateway.runtime.registry import ModelVersion, Registry
from gateway.server import Started
from gateway.tables import stdout_console
from gateway.types import JsonObject, TensorSpec

logger = logging.getLogger(__name__)


def announce(started: Started) -> None:
    """Print it to standard output; where logs are JSON, for a machine, log one line instead."""
    registry = started.gateway.registry
    if started.settings.log_format == "json":
        models = ", ".join(str(version.key) for version in registry)
        grpc = f", grpc on {started.grpc_address}" if started.grpc_address is not None else ""
        urls = f"{started.public_url}{grpc}, ops on {started.ops_url}"
        logger.info("serving %s on %s, device %s", models, urls, started.device)
        return
    facts = Table.grid(padding=(0, 2))
    facts.add_row("predictions", started.public_url)
    if started.grpc_address is not None:
        facts.add_row("grpc", started.grpc_address)
    facts.add_row("try them", f"{started.public_url}/try")
    facts.add_row("ops", f"{started.ops_url}  (routes, drift, /metrics)")
    facts.add_row("store", started.store)
    where = " (engine process)" if started.settings.engine == "process" else ""
    facts.add_row("device", f"{started.device}{where}")
    for index, name in enumerate(registry.names):
        facts.add_row("models" if index == 0 else "", f"{name}  (versions {', '.join(registry.versions(name))})")
    for key, reason in registry.refused.items():
        facts.add_row(Text("refused", "red"), f"{key}: {reason}")
    console = stdout_console()
    console.print(Panel(facts, title="gateway", title_align="left", box=box.ROUNDED, expand=False))
    console.print("Ask for a prediction:\n")
    console.print(example(started.public_url, registry), soft_wrap=True)
    console.print(f"\nThen:\n\n{_next_steps(started)}\n\nCtrl-C stops everything.", soft_wrap=True)


def example(public_url: str, registry: Registry) -> str:
    """A curl line that works when pasted."""
    version = registry.latest(registry.names[0])
    body = orjson.dumps({"inputs": [_tensor(version, spec) for spec in version.signature.inputs]}).decode()
    return f"curl -s -i {public_url}/v2/models/{version.key.name}/infer -d {shlex.quote(body)}"


def _next_steps(started: Started) -> str:
    """Commands that work in this shell, with this gateway."""
    is_module = Path(sys.argv[0]).name == "__main__.py"
    command = "gateway" if shutil.which("gateway") else "python -m gateway" if is_module else sys.argv[0]
    url = "" if started.ops_url == DEFAULT_URL else f" --ops-url {started.ops_url}"
    return f"{command} routes list{url}\n{command} drift{url}"


def _tensor(version: ModelVersion, spec: TensorSpec) -> JsonObject:
    shape, data = example_row(version, spec)
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data}
