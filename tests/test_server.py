"""`gateway serve` as an operator meets it: starts, stops, crashes and what survives them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import orjson
import pytest
from redis import Redis

from gateway.errors import StartupError
from gateway.lifecycle import background
from gateway.server import serve
from gateway.settings import Settings
from gateway.state import keys
from gateway.state.embedded import EmbeddedStore
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.requests import AFFINE, classify, error_of, outputs_of, turns
from tests.support.running import (
    GatewayProcess,
    children_of,
    clean_environment,
    is_alive,
    metric,
    refused_start,
    running,
)
from tests.support.waiting import wait_until

ALONE = "--no-collector"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one model."""
    models = tmp_path_factory.mktemp("small")
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "affine", "2", onnx_models.affine(3.0))
    write_version(models, "busy", "1", onnx_models.busy())
    return models


def set_version(gateway: GatewayProcess, version: str) -> int:
    """Send everything to one version; the status."""
    shown = gateway.ops.get("/admin/routes/affine")
    if shown.status_code != 200:
        return shown.status_code
    variants = [{"name": "only", "version": version, "weight": 100}]
    headers = {"If-Match": shown.headers["etag"]}
    return gateway.ops.put("/admin/routes/affine", json={"variants": variants}, headers=headers).status_code


def served_version(gateway: GatewayProcess) -> str:
    response = gateway.predict("affine", AFFINE)
    assert response.status_code == 200, response.text
    return str(response.json()["model_version"])


class TestGreeting:
    def test_the_curl_line_works_when_pasted_into_a_shell(self, gateway: GatewayProcess) -> None:
        (line,) = re.findall(r"^curl .*$", gateway.stdout, re.MULTILINE)
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout.startswith("HTTP/1.1 200 OK")
        assert "prediction-id: " in done.stdout.lower()

    def test_the_commands_it_proposes_work_when_pasted(self, gateway: GatewayProcess) -> None:
        proposed = [
            line for line in gateway.stdout.splitlines() if re.search(r"(routes list|drift)\b.*--ops-url", line)
        ]
        assert len(proposed) == 2
        for line in proposed:
            done = subprocess.run(
                ["sh", "-c", line], capture_output=True, text=True, timeout=30, check=False, env=shell_environment()
            )
            assert done.returncode == 0, done.stderr

    def test_it_names_models_ports_store_and_device(self, gateway: GatewayProcess) -> None:
        assert gateway.public_url in gateway.stdout
        assert gateway.ops_url in gateway.stdout
        assert "affine  (versions 1, 2)" in gateway.stdout
        assert "unix://" in gateway.stdout
        assert re.search(r"device +cpu", gateway.stdout)


def shell_environment() -> dict[str, str]:
    """`python` and `gateway` mean those of this environment."""
    return clean_environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def both_children(gateway: GatewayProcess) -> dict[str, int]:
    """Store and collector, once both are there."""
    found = children_of(gateway.pid)
    return found if found.keys() == {"store", "collector"} else {}


class TestStopping:
    def test_ctrl_c_stops_it_cleanly_and_leaves_no_store(self, small: Path, tmp_path: Path) -> None:
        with running(small, tmp_path, ALONE) as gateway:
            # No waiting after the greeting: whoever reads the addresses may use them.
            for url in (gateway.public_url, gateway.ops_url):
                host, port = url.removeprefix("http://").split(":")
                socket.create_connection((host, int(port)), timeout=1.0).close()
            children = children_of(gateway.pid)
            gateway.process.send_signal(signal.SIGINT)
            assert gateway.wait_until_stopped() == 0, gateway.log
            assert children.keys() == {"store"}
            assert not is_alive(children["store"])
            assert "Traceback" not in gateway.log

    def test_a_collector_that_dies_is_started_again_and_stops_with_the_gateway(
        self, small: Path, tmp_path: Path
    ) -> None:
        with running(small, tmp_path) as gateway:
            first = wait_until(lambda: both_children(gateway))["collector"]
            os.kill(first, signal.SIGKILL)
            children = wait_until(lambda: both_children(gateway) if not is_alive(first) else {})
            assert children["collector"] != first
            assert served_version(gateway) == "2"
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.wait_until_stopped() == 0, gateway.log
            assert not any(is_alive(pid) for pid in children.values())

    def test_kill_9_leaves_no_child_either(self, small: Path, tmp_path: Path) -> None:
        with running(small, tmp_path) as gateway:
            children = wait_until(lambda: both_children(gateway))
            gateway.process.kill()
            gateway.wait_until_stopped()
            wait_until(lambda: not any(is_alive(pid) for pid in children.values()))

    def test_what_is_in_flight_is_answered(self, small: Path, tmp_path: Path) -> None:
        with running(small, tmp_path, ALONE) as gateway, ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(gateway.predict, "busy", turns(40_000)) for _ in range(4)]
            wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") >= 1)
            gateway.process.send_signal(signal.SIGTERM)
            for answer in answers:
                assert outputs_of(answer.result()) == {"y": [40_000]}
            assert gateway.wait_until_stopped() == 0

    def test_while_draining_it_is_not_ready_and_serves_on(self, small: Path, tmp_path: Path) -> None:
        with running(small, tmp_path, ALONE, "--drain-seconds", "1.5") as gateway:
            gateway.process.send_signal(signal.SIGTERM)
            wait_until(lambda: gateway.public.get("/v2/health/ready").status_code == 503)
            assert served_version(gateway) == "2"
            assert gateway.public.get("/v2/health/live").status_code == 200
            assert gateway.wait_until_stopped() == 0

    def test_a_background_task_that_loses_a_cancellation_does_not_hold_up_the_end(self) -> None:
        lost: list[asyncio.CancelledError] = []

        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError as error:
                    lost.append(error)
                    if len(lost) == 3:
                        raise

        async def scenario() -> None:
            async with asyncio.timeout(10), background(stubborn()):
                await asyncio.sleep(0)

        asyncio.run(scenario())
        assert len(lost) == 3

    def test_the_request_log_is_written_to_the_end(self, small: Path, tmp_path: Path) -> None:
        server = EmbeddedStore(tmp_path / "store")
        server.start()
        try:
            with running(small, tmp_path / "data", ALONE, "--redis-url", server.url) as gateway:
                for _ in range(20):
                    gateway.predict("affine", AFFINE)
                gateway.stop()
            with Redis.from_url(server.url) as client:
                entries: Any = client.xrange(keys.predictions("affine"))
            assert sum(len(orjson.loads(fields[b"meta"])["requests"]) for _, fields in entries) == 20
        finally:
            server.stop()


def refusal(models: Path, data_dir: Path, **options: Any) -> str:
    """Why a gateway in this process does not start."""
    switch_interval = sys.getswitchinterval()
    settings = Settings(models=models, data_dir=data_dir, **{"port": 0, "ops_port": 0, "collector": False, **options})
    try:
        with pytest.raises(StartupError) as caught:
            asyncio.run(serve(settings, lambda started: pytest.fail(f"it started: {started}")))
    finally:
        sys.setswitchinterval(switch_interval)
    return str(caught.value)


class TestRefusing:
    def test_a_second_gateway_on_the_same_data_directory(self, gateway: GatewayProcess, models: Path) -> None:
        data_dir = Path(re.findall(r"unix://(\S+)/valkey/valkey.sock", gateway.stdout)[0])
        line = refused_start(models, data_dir, ALONE)
        assert line.startswith(f"error: data_dir {data_dir} is in use by another gateway")
        assert gateway.public.get("/v2/health/ready").status_code == 200

    def test_a_misspelt_variable(self, small: Path, tmp_path: Path) -> None:
        line = refused_start(small, tmp_path, ALONE, environment={"GATEWAY_PROT": "1"})
        assert line == "error: GATEWAY_PROT is not a setting; did you mean GATEWAY_PORT?"

    @pytest.mark.parametrize("name", ["port", "ops_port"])
    def test_a_port_in_use(self, name: str, small: Path, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            message = refusal(small, tmp_path, **{name: port})
        assert f"{name} 127.0.0.1:{port}: Address already in use" in message
        assert "choose another" in message

    def test_one_port_for_both_under_two_addresses(self, small: Path, tmp_path: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        message = refusal(small, tmp_path, host="0.0.0.0", port=port, ops_port=port)  # noqa: S104 -- it does not listen
        assert f"{port}: Address already in use" in message

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"redis_url": "http://localhost"}, "redis-url"),
            ({"host": "no.such.host.invalid"}, "port no.such.host.invalid:0: "),
            ({"ops_host": "127.0.0.1", "host": "192.0.2.1"}, "port 192.0.2.1:0: "),
        ],
    )
    def test_an_address_that_cannot_be_had(
        self, options: dict[str, Any], expected: str, small: Path, tmp_path: Path
    ) -> None:
        assert expected in refusal(small, tmp_path, **options)

    @pytest.mark.skipif(
        "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this machine has CUDA"
    )
    def test_a_device_that_is_not_there(self, small: Path, tmp_path: Path) -> None:
        assert "CUDAExecutionProvider" in refusal(small, tmp_path, device="cuda")

    def test_a_repository_without_models(self, tmp_path: Path) -> None:
        assert "--models" in refusal(tmp_path / "absent", tmp_path / "data")

    def test_a_data_directory_that_cannot_be_made(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "--data-dir" in refusal(small, tmp_path / "file" / "data")

    def test_a_refused_start_leaves_no_store_behind(self, tmp_path: Path) -> None:
        write_version(tmp_path / "models", "m", "1", b"no model")
        before = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        assert "no model could be loaded" in refusal(tmp_path / "models", tmp_path / "data")
        assert Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text() == before


class TestPartialService:
    def test_a_version_that_cannot_be_trusted_is_named_everywhere_and_the_others_serve(self, tmp_path: Path) -> None:
        # The terminal takes words in brackets for colours, unless it is told not to.
        models = tmp_path / "[red]models[" / "]"
        write_version(models, "affine", "1", onnx_models.affine(2.0))
        write_version(models, "affine", "2", b"no model")
        folder = write_published_version(models, "classifier", "1", onnx_models.classifier())
        (folder / "model.onnx").write_bytes(onnx_models.affine())
        with running(models, tmp_path / "data", ALONE) as gateway:
            assert served_version(gateway) == "1"
            assert str(models) in re.sub(r"[\s│]", "", gateway.stdout)
            for name, reason in (("affine/2", "cannot load it"), ("classifier/1", "sha256 is")):
                assert re.search(f"refused +{name}: ", gateway.stdout)
                assert f"refused {name}: " in gateway.log
                assert reason in gateway.log
            ready = gateway.public.get("/v2/health/ready")
            assert ready.status_code == 503
            assert "classifier/1" in ready.json()["error"]
            assert gateway.public.get("/v2/health/live").status_code == 200
            for path in ("classifier", "classifier/ready", "classifier/versions/1", "affine/versions/2/ready"):
                assert "is not loaded" in error_of(gateway.public.get(f"/v2/models/{path}"), 503)
            assert "is not loaded" in error_of(gateway.predict("classifier", AFFINE), 503)
            assert gateway.public.get("/v2/models").json() == {"models": ["affine", "classifier"]}
            assert metric(gateway, "gateway_model_ready", model="affine", version="1") == 1
            assert metric(gateway, "gateway_model_ready", model="affine", version="2") == 0


class TestCrashes:
    def test_without_the_store_predictions_go_on_and_edits_work_again_when_it_is_back(
        self, small: Path, tmp_path: Path
    ) -> None:
        with running(small, tmp_path, ALONE) as gateway:
            assert set_version(gateway, "1") == 200
            store = children_of(gateway.pid)["store"]
            os.kill(store, signal.SIGSTOP)
            slowest = max(gateway.predict("affine", AFFINE).elapsed.total_seconds() for _ in range(50))
            assert slowest < 1.0
            os.kill(store, signal.SIGKILL)
            wait_until(lambda: not is_alive(store))
            for _ in range(20):
                assert served_version(gateway) == "1"
            assert gateway.public.get("/v2/health/ready").status_code == 200
            assert wait_until(lambda: children_of(gateway.pid).get("store")) != store
            wait_until(lambda: set_version(gateway, "2") == 200)
            assert served_version(gateway) == "2"
            history = gateway.ops.get("/admin/routes/affine/history").json()["changes"]
            assert [change["revision"] for change in history] == [2, 1]

    def test_while_the_store_is_down_edits_are_503_and_even_a_restart_serves_by_the_last_good_rules(
        self, small: Path, tmp_path: Path
    ) -> None:
        server = EmbeddedStore(tmp_path / "store")
        server.start()
        options = (ALONE, "--redis-url", server.url)
        with running(small, tmp_path / "data", *options) as gateway:
            assert set_version(gateway, "1") == 200
            server.stop()
            response = gateway.ops.get("/admin/routes/affine")
            assert "the store does not answer" in error_of(response, 503)
            assert int(response.headers["retry-after"]) >= 1
            assert gateway.ops.get("/admin/routes").status_code == 200
            assert gateway.ops.get("/metrics").status_code == 200
            assert served_version(gateway) == "1"
        with running(small, tmp_path / "data", *options) as gateway:
            assert served_version(gateway) == "1"
            assert gateway.public.get("/v2/health/ready").status_code == 200

    def test_a_first_start_without_the_store_serves_but_is_not_ready(self, small: Path, tmp_path: Path) -> None:
        with running(small, tmp_path, ALONE, "--redis-url", "redis://127.0.0.1:1") as gateway:
            assert served_version(gateway) == "2"
            assert "routes are not known" in gateway.public.get("/v2/health/ready").json()["error"]


class TestTwoGateways:
    def test_they_share_changes_within_a_second_and_labels_for_each_others_predictions(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        write_version(models, "affine", "1", onnx_models.affine(2.0))
        write_version(models, "affine", "2", onnx_models.affine(3.0))
        write_published_version(models, "classifier", "1", onnx_models.classifier())
        server = EmbeddedStore(tmp_path / "store")
        server.start()
        # With a poll once a minute, only a notice can be this fast.
        options = (ALONE, "--redis-url", server.url, "--route-poll-seconds", "60")
        with running(models, tmp_path / "a", *options) as one, running(models, tmp_path / "b", *options) as other:
            for version in ("1", "2", "1"):
                assert set_version(one, version) == 200
                wait_until(lambda: served_version(other) == version, 1.0)  # noqa: B023 -- waited for here
            stale = one.ops.get("/admin/routes/affine").headers["etag"]
            assert set_version(other, "2") == 200
            variants = [{"name": "only", "version": "1", "weight": 100}]
            response = one.ops.put("/admin/routes/affine", json={"variants": variants}, headers={"If-Match": stale})
            error_of(response, 412)
            label = {"prediction_id": one.predict("classifier", classify(1.0)).headers["prediction-id"], "label": 1}
            assert other.public.post("/v2/feedback", json=label).json() == {"accepted": True, "duplicate": False}
            assert one.public.post("/v2/feedback", json=label).json() == {"accepted": True, "duplicate": True}
        server.stop()


class TestToken:
    def test_the_ops_port_wants_the_token_and_metrics_may_be_opened(self, small: Path, tmp_path: Path) -> None:
        token = "correct horse battery staple"  # noqa: S105 -- of a test
        options = (ALONE, "--metrics-public", "--ops-host", "0.0.0.0")  # noqa: S104 -- what the token is for
        with running(small, tmp_path, *options, environment={"GATEWAY_OPS_TOKEN": token}) as gateway:
            gateway.ops.base_url = gateway.ops_url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
                response = gateway.ops.get("/admin/routes", headers=header)
                error_of(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
            error_of(gateway.ops.get("/nothing"), 401)
            assert gateway.ops.get("/metrics").status_code == 200
            for header in ({"Authorization": f"Bearer {token}"}, {"authorization": f"bearer {token}"}):
                assert gateway.ops.get("/admin/routes", headers=header).status_code == 200
            assert token not in gateway.stdout + gateway.log


class TestLogs:
    def test_json_logs_are_one_object_a_line(self, small: Path, tmp_path: Path) -> None:
        gateway = GatewayProcess(small, tmp_path, ALONE, "--log-format", "json")
        try:
            wait_until(lambda: "serving" in gateway.log, 40.0)
            assert gateway.stop() == 0
        finally:
            gateway.kill()
        records = [orjson.loads(line) for line in gateway.log.splitlines()]
        assert all(record.keys() >= {"time", "level", "logger", "message"} for record in records)
        assert any("affine/2" in record["message"] for record in records)
        assert gateway.stdout == ""
