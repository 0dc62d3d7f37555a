"""What is asked of the servers, and which of them can be asked it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from bench import model, wrk
from bench.places import WORK, relative
from bench.servers import Protocol

Load: TypeAlias = Literal["closed", "open", "overload", "idle", "runtime"]
"""`runtime`: several models or settings of the gateway against each other; `bench/probes.py` says how."""

OPEN_CONNECTIONS = 256
LONGER_WAITS = frozenset({"rows-64", "rows-256"})
"""Where batches that wait 10 ms instead of 1 might serve a peer better; with few callers they only make them wait."""
ENGINE_SCENARIOS = frozenset({"rows-1", "rows-64", "compute"})
"""Where it is asked what a process of its own for the sessions costs or brings."""
IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load on one model."""

    name: str
    title: str
    model: str
    load: Load
    rows: int = 1
    connections: int = 64
    rate: float = 0.0
    """Requests a second, where the load is open."""
    is_binary: bool = False
    uses_all_cores: bool = False
    """ONNX Runtime's threads in every server: one, which leaves a core to the load, or one for each core."""
    has_baseline: bool = False
    """The same work is also measured in a process without a server."""
    protocols: frozenset[Protocol] = frozenset({"oip", "row", "none"})
    servers: frozenset[str] | None = None
    """Only these, where a peer has nothing to compare."""
    without: frozenset[str] = field(default_factory=frozenset)

    def includes(self, server: str, protocol: Protocol) -> bool:
        """Whether a server takes part."""
        if self.servers is not None:
            return server in self.servers
        is_worth_it = (not server.endswith("-10ms") or self.name in LONGER_WAITS) and (
            server != "gateway-engine" or self.name in ENGINE_SCENARIOS
        )
        return is_worth_it and server not in self.without and protocol in self.protocols


JSON_HEADERS = {"Content-Type": "application/json"}
OIP: frozenset[Protocol] = frozenset({"oip"})
MODELS: frozenset[Protocol] = frozenset({"oip", "row"})
PLAIN = frozenset({"gateway-plain"})
GATEWAY = frozenset({"gateway"})
ENGINE = frozenset({"gateway-engine"})


def _single(connections: int) -> Scenario:
    plural = "connection" if connections == 1 else "connections"
    title = f"single rows of 30 floats, {connections} {plural}"
    without = PLAIN if connections != 64 else frozenset[str]()
    is_first = connections == 1
    return Scenario(
        f"rows-{connections}", title, "mlp", "closed", 1, connections, has_baseline=is_first, without=without
    )


def _runtime(name: str, title: str, model: str) -> Scenario:
    return Scenario(name, title, model, "runtime", servers=GATEWAY)


SWEPT = {f"sweep-{name}": name for name in ("accidents", "digits", "employment-1", "employment-2", "magika")}
"""Models, each in the version named, by the scenario that compares their batch sizes."""
RUNTIME = (
    _runtime("shapes", "rows of 32 and of 256 floats for one model, alone and together (open loop)", "sequence"),
    _runtime("shares", "two equal models, asked in the ratio 1:10 (open loop)", "magika"),
    _runtime("target", "slo_ms = 100, offered shares of the capacity (open loop)", "dense"),
    _runtime("lone", "single rows of 30 floats, 1 connection, batched and not", "mlp"),
    *(_runtime(scenario, f"{name}: learned batch size and fixed ones", name) for scenario, name in SWEPT.items()),
    _runtime("reload", "a hundred loads and unloads at 600 requests a second (open loop)", "mlp"),
    _runtime("resident", "400 requests a second at 1 model and at 24 at random (open loop)", "mlp"),
)
SCENARIOS = {
    one.name: one
    for one in (
        *(_single(connections) for connections in (1, 16, 64, 256)),
        Scenario(
            "steady", "single rows, 1,000 a second at random times (open loop)", "mlp", "open", rate=1000, without=PLAIN
        ),
        Scenario(
            "batch-64", "64 rows in a request, 16 connections", "mlp", "closed", 64, 16, protocols=OIP, without=PLAIN
        ),
        Scenario("idle", "no requests for 10 seconds", "mlp", "idle", without=PLAIN),
        Scenario(
            "overload-decode",
            "64 rows in a request, offered at twice the capacity (open loop)",
            *("mlp", "overload", 64),
            servers=GATEWAY,
        ),
        Scenario(
            "image",
            "150,528 floats in JSON, 4 connections",
            *("image", "closed", 1, 4),
            has_baseline=True,
            protocols=OIP,
            without=PLAIN,
        ),
        Scenario(
            "image-binary",
            "150,528 floats as binary tensor data, 1 connection",
            *("image", "closed", 1, 1),
            is_binary=True,
            has_baseline=True,
            servers=GATEWAY | ENGINE,
        ),
        Scenario(
            "overload",
            "compute-bound model, offered at twice the capacity (open loop)",
            *("magika", "overload"),
            servers=GATEWAY,
        ),
        Scenario(
            "compute",
            "compute-bound model, 32 connections",
            *("magika", "closed"),
            connections=32,
            uses_all_cores=True,
            has_baseline=True,
            protocols=MODELS,
            without=PLAIN,
        ),
        *RUNTIME,
    )
}
QUICK = ("rows-1", "rows-64", "steady", "idle", "image", "overload")
QUICK_SERVERS = ("gateway", "echo", "prototype")


@dataclass(frozen=True, slots=True)
class Request:
    """What one scenario sends to servers of one protocol, as files that the load generators read."""

    body: Path
    script: str
    headers: dict[str, str]


def request(scenario: Scenario, protocol: Protocol) -> Request:
    """Of a scenario whose servers are all asked the same."""
    headers = JSON_HEADERS
    if scenario.is_binary:
        content, head = model.binary_body(scenario.model, scenario.rows)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)}
    elif protocol == "row":
        content = model.row_body(scenario.model)
    else:
        content = model.oip_body(scenario.model, scenario.rows)
    return write_request(f"{scenario.name}-{protocol}", content, headers)


def write_request(name: str, content: bytes, headers: dict[str, str]) -> Request:
    """Write the files."""
    folder = WORK / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    body, script = folder / f"{name}.body", folder / f"{name}.lua"
    body.write_bytes(content)
    script.write_text(wrk.script(relative(body), headers))
    return Request(body, relative(script), headers)
