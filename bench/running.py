"""A gateway to talk to: the one that runs already, or one of our own for as long as it is needed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

START_TIMEOUT_SECONDS = 60.0
PUBLIC = re.compile(r"predictions\s+(http://\S+)")
OPS = re.compile(r"ops\s+(http://\S+)")


class Urls(NamedTuple):
    """Where a gateway answers."""

    public: str
    ops: str


def answers(urls: Urls) -> bool:
    """Whether a ready gateway listens there."""
    try:
        return httpx.get(f"{urls.public}/v2/health/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def own_gateway(*options: str) -> Iterator[Urls]:
    """`gateway serve` on free ports with a data directory of its own, stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        output = Path(folder) / "output.txt"
        command = [sys.executable, "-m", "gateway", "serve", "--data-dir", folder, "--port", "0", "--ops-port", "0"]
        # Settings of the shell's own gateway must not leak into this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        with output.open("wb") as file:
            process = subprocess.Popen([*command, *options], stdout=file, stderr=file, env=environment)
        try:
            yield _wait(process, output)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def _wait(process: subprocess.Popen[bytes], output: Path) -> Urls:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        text = output.read_text("utf-8", "replace")
        public, ops = PUBLIC.search(text), OPS.search(text)
        if public and ops and answers(Urls(public[1], ops[1])):
            return Urls(public[1], ops[1])
        time.sleep(0.05)
    raise RuntimeError(f"the gateway did not start:\n{output.read_text('utf-8', 'replace')}")
