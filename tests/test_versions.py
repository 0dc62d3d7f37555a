"""Versions without a gap, on a gateway that serves: the poll under traffic, keys, limits, and what the log says."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest

from gateway.runtime.trust import sign
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.requests import AFFINE, error_of
from tests.support.running import GatewayProcess, metric, refused_start, running
from tests.support.signing import KeyPair
from tests.support.waiting import wait_until

ALONE = ("--no-collector", "--threads", "1")
POLLING = (*ALONE, "--model-poll-seconds", "0.05")


@dataclass
class Traffic:
    """What came back."""

    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def traffic_to(gateway: GatewayProcess, clients: int = 3) -> Iterator[Traffic]:
    """Requests for the model `m`, one after the other on each connection, until the end of the block."""
    traffic, stop = Traffic(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=gateway.public_url, timeout=30.0, trust_env=False) as client:
            while not stop.is_set():
                response = client.post("/v2/models/m/infer", json=AFFINE)
                if response.status_code == 200:
                    traffic.versions.append(response.json()["model_version"])
                else:
                    traffic.failures.append(response.text)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        stop.set()
        for thread in threads:
            thread.join(30.0)


def serves(traffic: Traffic, version: str) -> bool:
    return traffic.versions[-1:] == [version]


def has_logged(gateway: GatewayProcess, text: str) -> bool:
    return text in gateway.log


def publish(models: Path, version: str, content: bytes) -> Path:
    """The folder appears whole, as `publish_version` has it."""
    staged = write_version(models.parent / "staged", "m", version, content)
    (models / "m").mkdir(parents=True, exist_ok=True)
    return staged.rename(models / "m" / version)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    publish(folder, "1", onnx_models.affine(1.0))
    return folder


def test_versions_come_and_go_under_traffic_and_no_request_fails(models: Path, tmp_path: Path) -> None:
    (models / "m" / "model.toml").write_text("[versions]\nlatest = 1\n")
    with running(models, tmp_path / "data", *POLLING) as gateway, traffic_to(gateway) as traffic:
        for version in map(str, range(2, 7)):
            publish(models, version, onnx_models.affine(float(version)))
            wait_until(partial(serves, traffic, version))
            # It has answered what it had, and its memory is free.
            wait_until(partial(has_logged, gateway, f"unloaded m/{int(version) - 1}"))
        publish(models, "7", b"no model")
        wait_until(lambda: metric(gateway, "gateway_model_load_failures_total", model="m", version="7") == 1)
        seen = len(traffic.versions)
        wait_until(lambda: len(traffic.versions) > seen + 10)
        assert traffic.versions[-1] == "6"
        assert gateway.public.get("/v2/health/ready").status_code == 200
        assert "m/7 was not loaded, what serves goes on as before: " in gateway.log
        shutil.rmtree(models / "m" / "7")
        shutil.rmtree(models / "m" / "6")
        wait_until(lambda: traffic.versions[-1] == "5")
        assert metric(gateway, "gateway_model_memory_bytes", model="m", version="5") > 0
        assert traffic.failures == []


def test_without_the_poll_nothing_is_loaded_unasked(models: Path, tmp_path: Path) -> None:
    with running(models, tmp_path / "data", *ALONE) as gateway:
        publish(models, "2", onnx_models.affine(2.0))
        assert gateway.predict("m", AFFINE).json()["model_version"] == "1"
        assert gateway.ops.post("/v2/repository/models/m/load").json() == {"name": "m", "versions": ["1", "2"]}
        assert gateway.predict("m", AFFINE).json()["model_version"] == "2"


def test_after_a_restart_a_route_still_has_the_version_that_the_policy_leaves_out(models: Path, tmp_path: Path) -> None:
    publish(models, "2", onnx_models.affine(2.0))
    route = {"variants": [{"name": "stable", "version": "1", "weight": 100}]}
    with running(models, tmp_path / "data", *ALONE) as gateway:
        assert gateway.ops.put("/admin/routes/m", json=route, headers={"If-Match": '"0"'}).status_code == 200
    (models / "m" / "model.toml").write_text("[versions]\nlatest = 1\n")
    with running(models, tmp_path / "data", *ALONE) as gateway:
        assert gateway.predict("m", AFFINE).json()["model_version"] == "1"
        assert gateway.predict("m", AFFINE, version="2").status_code == 200


def test_an_unsigned_version_is_refused_by_name_and_an_unusable_key_stops_the_start(
    models: Path, tmp_path: Path
) -> None:
    key = KeyPair(tmp_path)
    sign(write_published_version(models, "signed", "1", onnx_models.classifier()), key.private)
    with running(models, tmp_path / "data", *ALONE, "--model-keys", str(key.public)) as gateway:
        assert "manifest.json: not there; with model_keys only" in error_of(gateway.predict("m", AFFINE), 503)
        assert gateway.public.get("/v2/models/signed/ready").status_code == 200
    line = refused_start(models, tmp_path / "data", *ALONE, "--model-keys", str(key.private))
    assert "holds a private key" in line


def test_a_load_beyond_the_limit_is_answered_507(models: Path, tmp_path: Path) -> None:
    with running(models, tmp_path / "data", *ALONE, "--model-memory-bytes", str(100 * 2**20)) as gateway:
        write_version(models, "large", "1", onnx_models.large(32 * 2**20))
        message = error_of(gateway.ops.post("/v2/repository/models/large/load"), 507)
        assert "model_memory_bytes allows" in message
        assert gateway.predict("m", AFFINE).status_code == 200
