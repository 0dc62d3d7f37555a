"""The workers of a running gateway, one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from gateway.state.sockets import socket_path
from tests.support.requests import AFFINE
from tests.support.running import GatewayProcess, children_of, is_alive
from tests.support.waiting import wait_until


def workers_of(gateway: GatewayProcess) -> dict[str, int]:
    """Process ids by name."""
    children = children_of(gateway.pid)
    return {name: pid for name, pid in children.items() if name.startswith("worker") and is_alive(pid)}


def ask(data_dir: Path, index: int, method: str, path: str, **options: Any) -> httpx.Response:
    """One worker, over the socket that is its supervisor's."""
    socket = socket_path(data_dir.resolve() / "workers" / f"{index}.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://worker", timeout=30.0) as client:
        return client.request(method, path, **options)


def counted(data_dir: Path, index: int, name: str) -> float:
    """The sum of one worker's samples of that name."""
    text = ask(data_dir, index, "GET", "/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def ready_versions(data_dir: Path, index: int) -> set[str]:
    """What one worker has loaded."""
    entries = ask(data_dir, index, "POST", "/v2/repository/index", content=orjson.dumps({"ready": True})).json()
    return {f"{entry['name']}/{entry['version']}" for entry in entries}


def predict_anew(gateway: GatewayProcess, model: str = "affine", document: dict[str, Any] | None = None) -> Any:
    """A prediction over a connection of its own, which any worker may get."""
    url = f"{gateway.public_url}/v2/models/{model}/infer"
    return httpx.post(url, json=document or AFFINE, timeout=30.0, trust_env=False)


def predict_often(gateway: GatewayProcess, count: int) -> list[str]:
    """The versions that answered, each over a connection of its own."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: predict_anew(gateway), range(count)))
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json()["model_version"] for answer in answers]


def wait_for_workers(gateway: GatewayProcess, count: int = 2) -> dict[str, int]:
    """All of them, once they all take requests."""

    def all_up() -> dict[str, int]:
        text = gateway.ops.get("/metrics").text
        up = [line for line in text.splitlines() if line.startswith("gateway_worker_up{") and line.endswith(" 1.0")]
        return workers_of(gateway) if len(up) == count else {}

    return wait_until(all_up, 40.0)
