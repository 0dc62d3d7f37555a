"""A real gateway: `python -m gateway serve` as a child on free ports, with what it printed and logged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import wait_until

START_SECONDS = 40.0
URL = re.compile(r"(predictions|ops) +(https?://\S+)")


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment of the tests without any setting of a gateway."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return environment | {"PYTHONUNBUFFERED": "1", "COLUMNS": "400"} | changes


def children_of(pid: int) -> dict[str, int]:
    """Process ids of the direct children, by what they are."""
    found = {}
    for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        kinds = {b"collect": "collector", b"engine": "engine"}
        names = [kinds[word] for word in command if word in kinds]
        kind = names[0] if names else "store" if b"valkey" in command[0] else command[0].decode()
        if b"worker" in command:
            kind = f"worker {command[command.index(b'worker') + 1].decode()}"
        found[kind] = int(name)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class GatewayProcess:
    """One running gateway and a client for each of its ports."""

    def __init__(
        self, models: Path, data_dir: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "gateway", "serve", "--models", str(models), "--data-dir", str(data_dir)]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--ops-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**(environment or {})),
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines[name].append(line)

    @property
    def stdout(self) -> str:
        """Everything printed so far."""
        return "".join(self._lines["stdout"])

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return "".join(self._lines["stderr"])

    @property
    def pid(self) -> int:
        """Process id of the gateway."""
        return self.process.pid

    def wait_until_started(self) -> GatewayProcess:
        """Both URLs are printed and the last line of the greeting is out."""
        wait_until(lambda: "Ctrl-C" in self.stdout or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.log
        urls = dict(URL.findall(self.stdout))
        self.public_url, self.ops_url = urls["predictions"], urls["ops"]
        self.public = httpx.Client(base_url=self.public_url, timeout=30.0, trust_env=False)
        self.ops = httpx.Client(base_url=self.ops_url, timeout=30.0, trust_env=False)
        return self

    def wait_until_stopped(self, seconds: float = 20.0) -> int:
        """The exit code, once everything it said has been read."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return code

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_until_stopped()

    def kill(self) -> None:
        """The end of it, also for a test that did not get to `stop`."""
        for client in (getattr(self, "public", None), getattr(self, "ops", None)):
            if client is not None:
                client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.wait_until_stopped()

    def predict(self, model: str, document: Mapping[str, object], **options: object) -> httpx.Response:
        """POST to the model's `infer`; `version` and `headers` may be given."""
        version = f"/versions/{options['version']}" if "version" in options else ""
        headers = options.get("headers")
        assert headers is None or isinstance(headers, dict)
        return self.public.post(f"/v2/models/{model}{version}/infer", json=document, headers=headers)


@contextmanager
def running(
    models: Path, data_dir: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[GatewayProcess]:
    """A started gateway that is gone at the end, whatever happens."""
    gateway = GatewayProcess(models, data_dir, *options, environment=environment)
    try:
        yield gateway.wait_until_started()
        if gateway.process.poll() is None:
            assert gateway.stop() == 0, gateway.log
    finally:
        gateway.kill()


def refused_start(models: Path, data_dir: Path, *options: str, environment: Mapping[str, str] | None = None) -> str:
    """The one line with which a start is refused; fails if it is not refused, or not in one line with code 2."""
    gateway = GatewayProcess(models, data_dir, *options, environment=environment)
    try:
        assert gateway.wait_until_stopped(START_SECONDS) == 2, gateway.log
    finally:
        gateway.kill()
    assert gateway.stdout == ""
    errors = [line for line in gateway.log.splitlines() if not re.match(r"\d\d:\d\d:\d\d (INFO|WARNING|ERROR) ", line)]
    assert len(errors) == 1, gateway.log
    return errors[0]


def metric(gateway: GatewayProcess, name: str, **labels: str) -> float:
    """The sum of the gateway's samples of that name and these labels."""
    text = gateway.ops.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
