"""`gateway serve --workers 2` as clients and operators meet it: one gateway, whatever happens to its processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb

from gateway.telemetry.metrics import INSTRUMENTS
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.requests import AFFINE, error_of, outputs_of, turns
from tests.support.rpc import address_of, refused, stub
from tests.support.running import GatewayProcess, children_of, is_alive, metric, refused_start, running
from tests.support.waiting import wait_until
from tests.support.workers import (
    ask,
    counted,
    predict_anew,
    predict_often,
    ready_versions,
    wait_for_workers,
    workers_of,
)

ALONE = "--no-collector"
TWO = (ALONE, "--workers", "2")
LOADS = "/v2/repository/models/affine"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """With a short name: that of a Unix socket below it has room for a hundred characters."""
    with TemporaryDirectory(prefix="gw") as folder:
        yield Path(folder)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "busy", "1", onnx_models.busy())
    return models


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of two workers that tests share: stop none of them."""
    models = tmp_path_factory.mktemp("models")
    write_version(models, "affine", "1", onnx_models.affine(2.0))
    write_version(models, "affine", "2", onnx_models.affine(3.0))
    with running(models, data_dir, *TWO, "--control-public", "--grpc-port", "0", "--drain-seconds", "0.5") as gateway:
        yield gateway


class TestAsOneGateway:
    def test_counters_are_summed_over_workers_to_the_last_request(self, pair: GatewayProcess, data_dir: Path) -> None:
        names = ("gateway_requests_total", "gateway_request_duration_seconds_count", "gateway_batches_total")
        before = {name: (metric(pair, name), [counted(data_dir, index, name) for index in (0, 1)]) for name in names}
        predict_often(pair, 60)
        assert predict_anew(pair, "affine", {"inputs": []}).status_code == 400
        for name, (total, parts) in before.items():
            now = [counted(data_dir, index, name) for index in (0, 1)]
            assert all(later > earlier for later, earlier in zip(now, parts, strict=True))
            assert metric(pair, name) - total == sum(now) - sum(parts)
        assert metric(pair, "gateway_requests_total") - before["gateway_requests_total"][0] == 60
        assert metric(pair, "gateway_errors_total", reason="invalid_request") >= 1

    def test_the_workers_themselves_are_among_the_metrics(self, pair: GatewayProcess) -> None:
        assert metric(pair, "gateway_workers") == 2
        assert metric(pair, "gateway_worker_up", worker="0") == metric(pair, "gateway_worker_up", worker="1") == 1
        assert metric(pair, "gateway_model_ready", model="affine", version="1") == 1
        text = pair.ops.get("/metrics").text
        families = list(text_string_to_metric_families(text))
        assert sorted((family.name, family.type, family.documentation) for family in families) == sorted(
            (instrument.name.removesuffix("_total"), instrument.kind, instrument.help) for instrument in INSTRUMENTS
        )
        openmetrics = pair.ops.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")

    def test_statistics_are_those_of_all_over_http_and_grpc(self, pair: GatewayProcess) -> None:
        def over_http(path: str = "affine/stats") -> int:
            entries = httpx.get(f"{pair.public_url}/v2/models/{path}", trust_env=False).json()["model_stats"]
            return sum(entry["inference_stats"]["success"]["count"] for entry in entries)

        before = over_http()
        predict_often(pair, 40)
        assert {over_http() for _ in range(8)} == {before + 40}
        assert over_http("stats") == before + 40
        assert over_http("affine/versions/1/stats") + over_http("affine/versions/2/stats") == before + 40
        with grpc.insecure_channel(address_of(pair)) as channel:
            answer = stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="affine"))
            assert sum(entry.inference_stats.success.count for entry in answer.model_stats) == before + 40
            end = refused(lambda: stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="nothing")))
            assert end.code() is grpc.StatusCode.NOT_FOUND
        assert "unknown model" in error_of(pair.public.get("/v2/models/nothing/stats"), 404)

    def test_a_route_reaches_both_and_its_history_names_who_asked(self, pair: GatewayProcess, data_dir: Path) -> None:
        for version in ("1", "2"):
            tag = pair.ops.get("/admin/routes/affine").headers["etag"]
            variants = [{"name": "only", "version": version, "weight": 100}]
            body = {"variants": variants}
            answer = pair.ops.put("/admin/routes/affine", json=body, headers={"If-Match": tag})
            assert answer.status_code == 200
            # Whoever asks at the ops port sees what was done there.
            assert pair.ops.get("/admin/routes/affine").json()["variants"][0]["version"] == version
            for index in (0, 1):
                shown = lambda i=index: ask(data_dir, i, "GET", "/admin/routes/affine").json()["variants"]  # noqa: E731
                wait_until(lambda v=version, s=shown: s()[0]["version"] == v)  # type: ignore[misc]
            assert set(predict_often(pair, 20)) == {version}
        change = pair.ops.get("/admin/routes/affine/history").json()["changes"][0]
        assert change["actor"] == "127.0.0.1"

    def test_a_log_level_reaches_every_process(self, pair: GatewayProcess, data_dir: Path) -> None:
        for where, is_on in ((pair.ops, True), (pair.public, False)):
            assert where.post("/v2/logging", json={"log_verbose_level": int(is_on)}).status_code == 200
            for index in (0, 1):
                assert ask(data_dir, index, "GET", "/v2/logging").json()["log_verbose_level"] == is_on
        assert "a level that is on" in error_of(pair.ops.post("/v2/logging", json={"log_error": False}), 400)
        assert len(re.findall(r"the log's level is changed to DEBUG", pair.log)) == 3
        assert re.search(r" worker 1 gateway\.", pair.log)

    def test_what_cannot_take_effect_is_refused(self, pair: GatewayProcess) -> None:
        message = error_of(pair.ops.post("/v2/trace/setting", json={"trace_rate": "1"}), 400)
        assert message.startswith("nothing is traced")

    def test_what_is_between_workers_and_supervisor_cannot_be_asked_for(self, pair: GatewayProcess) -> None:
        host, port = pair.ops_url.removeprefix("http://").split(":")
        for path in ("/worker/state", "/%77orker/state", "//worker/state", "//x/worker/state", "/a/../worker/state"):
            with socket.create_connection((host, int(port)), timeout=10.0) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 404 "), path
        error_of(pair.ops.get("/nothing"), 404)
        allowed = pair.ops.delete("/admin/routes/affine").headers["allow"]
        assert set(allowed.split(", ")) == {"GET", "HEAD", "PUT", "PATCH"}
        error_of(pair.ops.delete("/admin/routes/affine"), 405)

    def test_a_client_that_may_loads_and_unloads_in_both(self, pair: GatewayProcess, data_dir: Path) -> None:
        def loaded(path: str = "affine/1") -> list[bool]:
            return [path in ready_versions(data_dir, index) for index in (0, 1)]

        assert loaded() == [True, True]
        one = {"parameters": {"version": "1"}}
        answer = pair.public.post(f"{LOADS}/unload", json=one)
        assert answer.json() == {"name": "affine", "versions": ["2"]}
        assert loaded() == [False, False]
        assert pair.public.post(f"{LOADS}/load").json() == {"name": "affine", "versions": ["1", "2"]}
        assert loaded() == [True, True]
        with grpc.insecure_channel(address_of(pair)) as channel:
            service = stub(channel)
            parameters = {"version": pb.ModelRepositoryParameter(string_param="1")}
            service.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="affine", parameters=parameters))
            assert loaded() == [False, False]
            index = service.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
            assert [(entry.name, entry.version) for entry in index] == [("affine", "2")]
            service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="affine"))
            assert loaded() == [True, True]
            end = refused(lambda: service.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="nothing")))
            assert end.code() is grpc.StatusCode.NOT_FOUND
        assert "holds no nothing/" in error_of(pair.public.post("/v2/repository/models/nothing/load"), 404)

    def test_every_worker_keeps_its_sockets_to_itself(self, pair: GatewayProcess, data_dir: Path) -> None:
        assert workers_of(pair).keys() == {"worker 0", "worker 1"}
        folder = data_dir / "workers"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
            "0.sock": 0o600,
            "1.sock": 0o600,
            "supervisor.sock": 0o600,
        }

    def test_a_second_gateway_on_the_port_is_refused(
        self, pair: GatewayProcess, repository: Path, tmp_path: Path
    ) -> None:
        port = pair.public_url.rpartition(":")[2]
        for options in ((ALONE,), TWO):
            line = refused_start(repository, tmp_path / "other", *options, "--port", port)
            assert f"port 127.0.0.1:{port}: Address already in use; choose another with --port" in line


class TestWorkersThatDie:
    def test_only_what_it_had_in_flight_is_lost_and_it_comes_back_like_the_others(
        self, repository: Path, tmp_path: Path
    ) -> None:
        data_dir = tmp_path / "data"
        with running(repository, data_dir, *TWO) as gateway:
            write_version(repository, "affine", "2", onnx_models.affine(3.0))
            assert gateway.ops.post(f"{LOADS}/load").json()["versions"] == ["1", "2"]
            assert gateway.ops.post("/v2/logging", json={"log_info": False}).status_code == 200
            predict_often(gateway, 20)
            counted_before = metric(gateway, "gateway_requests_total")
            # Versions that came to the repository since and were not asked for, of which one is broken.
            write_version(repository, "affine", "3", onnx_models.affine(4.0))
            write_version(repository, "affine", "4", b"no model")
            first = workers_of(gateway)
            threads = 4
            with under_load(gateway, threads) as failed:
                os.kill(first["worker 0"], signal.SIGKILL)
                wait_until(lambda: not is_alive(first["worker 0"]))
                at_most = len(failed)
                for _ in range(50):
                    assert predict_anew(gateway).status_code == 200
                again = wait_for_workers(gateway)
            # A thread has one request in flight, so none has failed twice, and none after the worker was gone.
            assert len(failed) <= threads
            assert len(failed) - at_most <= threads
            assert all(isinstance(error, httpx.TransportError) for error in failed)
            assert again["worker 0"] != first["worker 0"]
            assert again["worker 1"] == first["worker 1"]
            assert [ready_versions(data_dir, index) for index in (0, 1)] == [{"affine/1", "affine/2", "busy/1"}] * 2
            assert ask(data_dir, 0, "GET", "/v2/logging").json()["log_info"] is False
            assert {predict_anew(gateway).status_code for _ in range(20)} == {200}
            assert httpx.get(f"{gateway.public_url}/v2/health/ready", trust_env=False).status_code == 200
            # Sums do not fall: what the worker had counted at the last scrape is kept.
            assert metric(gateway, "gateway_requests_total") >= counted_before + 70
            assert metric(gateway, "gateway_worker_restarts_total", worker="0") == 1
            assert "worker 0 has exited (SIGKILL)" in gateway.log
            # It is told of changes like any other.
            assert gateway.ops.post(f"{LOADS}/unload", json={"parameters": {"version": "1"}}).status_code == 200
            assert [ready_versions(data_dir, index) for index in (0, 1)] == [{"affine/2", "busy/1"}] * 2

    def test_without_any_worker_the_ops_port_says_so_and_later_they_are_as_before(
        self, repository: Path, tmp_path: Path
    ) -> None:
        with running(repository, tmp_path / "data", *TWO) as gateway:
            assert gateway.ops.post("/v2/repository/models/busy/unload").status_code == 200
            for pid in workers_of(gateway).values():
                os.kill(pid, signal.SIGKILL)
            answer = wait_until_refused(gateway)
            assert "no worker takes requests" in error_of(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert metric(gateway, "gateway_workers") == 2
            wait_for_workers(gateway)
            assert [ready_versions(tmp_path / "data", index) for index in (0, 1)] == [{"affine/1"}] * 2
            predict_often(gateway, 10)

    def test_a_worker_that_was_asked_to_end_is_started_again_as_well(self, repository: Path, tmp_path: Path) -> None:
        with running(repository, tmp_path / "data", *TWO) as gateway:
            first = workers_of(gateway)["worker 1"]
            os.kill(first, signal.SIGTERM)
            wait_until(lambda: not is_alive(first))
            assert wait_for_workers(gateway)["worker 1"] != first
            assert "worker 1 has exited (code 0)" in gateway.log


def wait_until_refused(gateway: GatewayProcess) -> httpx.Response:
    """What the ops port says once it knows of no worker; before, it may have asked one that was just dying."""

    def without_workers() -> list[httpx.Response]:
        return [answer for answer in [gateway.ops.get("/admin/routes")] if "no worker" in answer.text]

    return wait_until(without_workers)[0]


@contextmanager
def under_load(gateway: GatewayProcess, threads: int) -> Iterator[list[Exception]]:
    """Predictions without a pause, each over a connection of its own; those that failed."""
    failed: list[Exception] = []
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            try:
                answer = predict_anew(gateway)
                assert answer.status_code == 200, answer.text
            except (httpx.HTTPError, AssertionError) as error:
                failed.append(error)

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(client) for _ in range(threads)]
        try:
            yield failed
        finally:
            is_over.set()
    for future in done:
        future.result()


class TestStopping:
    def test_no_request_fails_while_load_balancers_take_it_out(self, repository: Path, tmp_path: Path) -> None:
        with running(repository, tmp_path / "data", *TWO, "--drain-seconds", "5") as gateway:
            children = children_of(gateway.pid)
            with ThreadPoolExecutor(4) as pool:
                slow = [pool.submit(predict_anew, gateway, "busy", turns(30_000)) for _ in range(4)]
                wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") >= 1)
                with under_load(gateway, 4) as failed:
                    gateway.process.send_signal(signal.SIGTERM)
                    ready = f"{gateway.public_url}/v2/health/ready"
                    wait_until(lambda: httpx.get(ready, trust_env=False).status_code == 503)
                    assert predict_anew(gateway).status_code == 200
                    # Also while it stops it counts.
                    assert metric(gateway, "gateway_requests_total", model="affine") >= 1
                assert failed == []
                assert [outputs_of(answer.result()) for answer in slow] == [{"y": [30_000]}] * 4
            assert gateway.wait_until_stopped() == 0, gateway.log
            assert not any(is_alive(pid) for pid in children.values())
            assert "Traceback" not in gateway.log

    def test_without_the_supervisor_workers_answer_what_is_in_flight_and_end(
        self, repository: Path, tmp_path: Path
    ) -> None:
        with running(repository, tmp_path / "data", *TWO) as gateway:
            children = children_of(gateway.pid)
            assert children.keys() == {"store", "worker 0", "worker 1"}
            with ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(predict_anew, gateway, "busy", turns(30_000)) for _ in range(4)]
                wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") >= 1)
                gateway.process.kill()
                assert [outputs_of(answer.result()) for answer in answers] == [{"y": [30_000]}] * 4
            wait_until(lambda: not any(is_alive(pid) for pid in children.values()), 30.0)

    def test_ctrl_c_while_workers_load_ends_them(self, repository: Path, tmp_path: Path) -> None:
        gateway = GatewayProcess(repository, tmp_path / "data", *TWO)
        try:
            children = wait_until(lambda: workers_of(gateway))
            gateway.process.send_signal(signal.SIGINT)
            assert gateway.wait_until_stopped() == 0, gateway.log
            assert not any(is_alive(pid) for pid in children.values())
        finally:
            gateway.kill()


class TestRefusing:
    def test_what_is_wrong_with_the_models_is_said_once(self, tmp_path: Path) -> None:
        write_version(tmp_path / "models", "m", "1", b"no model")
        assert "no model could be loaded: " in refused_start(tmp_path / "models", tmp_path / "data", *TWO)

    def test_a_port_that_a_stranger_listens_on(self, repository: Path, tmp_path: Path) -> None:
        for name in ("port", "ops-port", "grpc-port"):
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                port = str(taken.getsockname()[1])
                line = refused_start(repository, tmp_path / "data", *TWO, f"--{name}", port)
            assert f"{name.replace('-', '_')} 127.0.0.1:{port}: Address already in use; choose another" in line

    def test_a_data_directory_in_use(self, pair: GatewayProcess, data_dir: Path, repository: Path) -> None:
        assert pair.process.poll() is None
        assert f"data_dir {data_dir} is in use" in refused_start(repository, data_dir, *TWO)

    def test_a_folder_of_sockets_that_others_can_reach(self, repository: Path, tmp_path: Path) -> None:
        folder = tmp_path / "data" / "workers"
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        assert f"{folder}: others can reach into this folder" in refused_start(repository, tmp_path / "data", *TWO)

    def test_a_token_is_wanted_by_the_ops_port_of_several_too(self, repository: Path, tmp_path: Path) -> None:
        token = "correct horse battery staple"  # noqa: S105 -- of a test
        environment = {"GATEWAY_OPS_TOKEN": token}
        with running(repository, tmp_path / "data", *TWO, "--metrics-public", environment=environment) as gateway:
            for method, path in (("GET", "/admin/routes"), ("POST", f"{LOADS}/load"), ("GET", "/worker/state")):
                error_of(gateway.ops.request(method, path), 401)
            assert gateway.ops.get("/metrics").status_code == 200
            bearer = {"Authorization": f"Bearer {token}"}
            assert gateway.ops.get("/admin/routes", headers=bearer).status_code == 200
            error_of(gateway.public.post(f"{LOADS}/load"), 403)
            assert token not in gateway.stdout + gateway.log


def test_json_logs_say_which_worker_it_was(repository: Path, tmp_path: Path) -> None:
    gateway = GatewayProcess(repository, tmp_path / "data", *TWO, "--log-format", "json")
    try:
        wait_until(lambda: "serving" in gateway.log, 40.0)
        assert gateway.stop() == 0
    finally:
        gateway.kill()
    records = [orjson.loads(line) for line in gateway.log.splitlines()]
    assert {record.get("worker") for record in records} == {None, 0, 1}


def test_one_worker_is_the_gateway_itself(repository: Path, tmp_path: Path) -> None:
    with running(repository, tmp_path / "data", ALONE, "--workers", "1") as gateway:
        assert gateway.predict("affine", AFFINE).status_code == 200
        assert children_of(gateway.pid).keys() == {"store"}
        assert "gateway_worker" not in gateway.ops.get("/metrics").text
