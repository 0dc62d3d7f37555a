"""Each peer in an environment of its own, from its pinned `requirements.txt`, made once and kept in `.bench/venvs/`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from bench.places import PEERS, VENVS

STAMP = ".installed"
INSTALL_TIMEOUT_SECONDS = 1200
REASON_LINES = 5


class PeerUnavailable(Exception):
    """The peer could not be installed or started here; the message says why and goes into the results."""


def environment(peer: str) -> Path:
    """The peer's environment, made if it is not there or was made from other pins. Raises `PeerUnavailable`."""
    requirements = PEERS / peer / "requirements.txt"
    folder = VENVS / peer
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
        stamp.write_text(wanted)
    return folder


def pins(peer: str) -> dict[str, str]:
    """Package versions as pinned."""
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if "==" in line)


def _run(command: list[str]) -> None:
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable(f"not installed within {INSTALL_TIMEOUT_SECONDS} s") from error
    if finished.returncode:
        lines = (finished.stdout + finished.stderr).strip().splitlines()
        raise PeerUnavailable("not installed: " + " / ".join(lines[-REASON_LINES:]))
