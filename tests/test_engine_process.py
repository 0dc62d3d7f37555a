"""`gateway serve --engine process` as an operator meets it: it serves the same, and survives the end of either side."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import onnxruntime
import orjson
import pytest

from gateway.engine_process import engine_socket
from gateway.errors import StartupError
from gateway.settings import load_settings
from tests.support import onnx_models
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.requests import AFFINE, classify, error_of, inputs, outputs_of, tensor, turns
from tests.support.running import GatewayProcess, children_of, is_alive, metric, refused_start, running
from tests.support.waiting import wait_until
from tests.support.workers import counted, predict_anew, predict_often, wait_for_workers, workers_of

OPTIONS = ("--no-collector", "--engine", "process")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("engine-gateway")
    write_version(models, "affine", "1", onnx_models.affine())
    write_version(models, "busy", "1", onnx_models.busy())
    write_version(models, "text", "1", onnx_models.identity("BYTES", ("n", 1)))
    write_published_version(models, "classifier", "1", onnx_models.classifier())
    return models


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that tests share; they leave its engine alone."""
    data_dir = tmp_path_factory.mktemp("engine-data")
    with running(repository, data_dir, *OPTIONS, "--engine-arena-bytes", str(2**20)) as gateway:
        yield gateway


class TestServing:
    def test_every_door_answers_as_ever(self, served: GatewayProcess) -> None:
        assert outputs_of(served.predict("affine", AFFINE)) == {"y": [3, 5, 7]}
        texts = inputs(tensor("x", "BYTES", ["übel", ""], [2, 1]))
        assert outputs_of(served.predict("text", texts)) == {"y": ["übel", ""]}
        answer = served.predict("classifier", classify(1.0))
        assert outputs_of(answer)["label"] == [1]
        assert answer.headers["prediction-id"]
        v1 = served.public.post("/v1/models/affine:predict", json={"instances": [[1, 2, 3]]})
        assert v1.json() == {"predictions": [[3, 5, 7]]}
        assert served.public.get("/v2/health/ready").status_code == 200
        assert "cpu (engine process)" in served.stdout

    def test_the_gateway_itself_never_loads_onnx_runtime(self, served: GatewayProcess) -> None:
        engine = children_of(served.pid)["engine"]
        assert "onnxruntime" in Path(f"/proc/{engine}/maps").read_text()
        assert "onnxruntime" not in Path(f"/proc/{served.pid}/maps").read_text()

    def test_errors_of_the_model_are_the_callers_own(self, served: GatewayProcess) -> None:
        too_large = inputs(tensor("turns", "INT64", [1] * 1024, [1024, 1]))
        assert served.predict("busy", too_large).status_code == 200
        assert "at most 1024" in error_of(served.predict("busy", turns(1, rows=1025)), 400)

    def test_the_devices_batches_are_counted_besides_those_of_the_worker(self, served: GatewayProcess) -> None:
        before = metric(served, "gateway_engine_batch_rows_sum", model="affine")
        for _ in range(3):
            served.predict("affine", AFFINE)
        assert metric(served, "gateway_engine_batch_rows_sum", model="affine") == before + 3
        assert metric(served, "gateway_batch_rows_count", model="affine") >= 3

    def test_models_come_and_go(self, served: GatewayProcess, repository: Path) -> None:
        write_version(repository, "late", "1", onnx_models.affine(5.0))
        write_version(repository, "broken", "1", b"no model")
        assert served.ops.post("/v2/repository/models/late/load").status_code == 200
        assert outputs_of(served.predict("late", AFFINE)) == {"y": [6, 11, 16]}
        assert "ONNX Runtime cannot load it" in error_of(served.ops.post("/v2/repository/models/broken/load"), 400)
        shutil.rmtree(repository / "broken")
        assert served.ops.post("/v2/repository/models/late/unload").status_code == 200
        assert served.predict("late", AFFINE).status_code == 404
        assert served.ops.post("/v2/repository/models/late/load").status_code == 200
        assert outputs_of(served.predict("late", AFFINE)) == {"y": [6, 11, 16]}


class TestKilled:
    def test_a_killed_engine_costs_503s_and_comes_back(self, repository: Path, tmp_path: Path) -> None:
        statuses: Counter[int] = Counter()
        stop = threading.Event()

        def ask(url: str) -> None:
            with httpx.Client(base_url=url, timeout=30.0, trust_env=False) as client:
                while not stop.is_set():
                    response = client.post("/v2/models/busy/infer", json=turns(200))
                    statuses[response.status_code] += 1
                    if response.status_code == 503:
                        assert int(response.headers["retry-after"]) >= 1
                        assert "engine process has ended" in response.json()["error"]
                    else:
                        assert outputs_of(response) == {"y": [200]}

        with running(repository, tmp_path, *OPTIONS) as gateway, ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, gateway.public_url) for _ in range(4)]
            try:
                for _ in range(2):
                    first = children_of(gateway.pid)["engine"]
                    answered = statuses[200]
                    wait_until(lambda: statuses[200] > answered + 20)  # noqa: B023 -- waited for here
                    refused = statuses[503]
                    os.kill(first, signal.SIGKILL)
                    wait_until(lambda: statuses[503] > refused)  # noqa: B023 -- as above
                    ready = gateway.public.get("/v2/health/ready")
                    assert ready.status_code == 503
                    assert "engine process has ended" in ready.json()["error"]
                    assert "cannot run" in error_of(gateway.public.get("/v2/models/affine/ready"), 503)
                    assert metric(gateway, "gateway_model_ready", model="affine") == 0
                    # What is served is still known.
                    assert gateway.public.get("/v2/models/affine").json()["versions"] == ["1"]
                    wait_until(lambda: gateway.public.get("/v2/health/ready").status_code == 200)
                    assert children_of(gateway.pid)["engine"] != first
            finally:
                stop.set()
            for each in asking:
                each.result()
            assert statuses.keys() == {200, 503}
            assert outputs_of(gateway.predict("affine", AFFINE)) == {"y": [3, 5, 7]}

    def test_kill_9_leaves_no_engine_and_the_next_start_needs_no_cleaning(
        self, repository: Path, tmp_path: Path
    ) -> None:
        for _ in range(2):
            with running(repository, tmp_path, *OPTIONS) as gateway:
                children = children_of(gateway.pid)
                assert children.keys() == {"store", "engine"}
                gateway.process.kill()
                gateway.wait_until_stopped()
                wait_until(lambda: not any(is_alive(pid) for pid in children.values()))  # noqa: B023 -- waited for here

    def test_what_is_in_flight_at_the_end_is_answered(self, repository: Path, tmp_path: Path) -> None:
        with running(repository, tmp_path, *OPTIONS) as gateway, ThreadPoolExecutor(4) as pool:
            # The first slow run tells the engine's batcher that they are.
            gateway.predict("busy", turns(1_000))
            answers = [pool.submit(gateway.predict, "busy", turns(20_000)) for _ in range(4)]
            wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") >= 1)
            gateway.process.send_signal(signal.SIGTERM)
            for answer in answers:
                assert outputs_of(answer.result()) == {"y": [20_000]}
            assert gateway.wait_until_stopped() == 0, gateway.log
            assert "Traceback" not in gateway.log


class TestWorkers:
    def test_two_workers_share_one_engine_and_its_batches(self, repository: Path, tmp_path: Path) -> None:
        with running(repository, tmp_path, *OPTIONS, "--workers", "2") as gateway, ThreadPoolExecutor(8) as pool:
            children = children_of(gateway.pid)
            assert children.keys() == {"store", "engine", "worker 0", "worker 1"}
            for worker in ("worker 0", "worker 1"):
                assert "onnxruntime" not in Path(f"/proc/{children[worker]}/maps").read_text()
            predict_anew(gateway, "busy", turns(1_000))

            def a_batch_held_rows_of_both() -> bool:
                answers = list(pool.map(lambda _: predict_anew(gateway, "busy", turns(3_000)), range(8)))
                assert all(outputs_of(answer) == {"y": [3_000]} for answer in answers)
                sent = [counted(tmp_path, index, "gateway_batch_rows_sum") for index in range(2)]
                run = [counted(tmp_path, index, "gateway_engine_batch_rows_sum") for index in range(2)]
                assert sum(run) == sum(sent)
                # A run is counted once, where its first rows came from: with those of the other worker, if it had any.
                return run != sent

            wait_until(a_batch_held_rows_of_both, 60.0)
            assert metric(gateway, "gateway_model_memory_bytes", model="busy") > 0
            assert predict_anew(gateway, "affine").json()["outputs"][0]["data"] == [3, 5, 7]

    def test_a_worker_that_dies_leaves_the_engine_to_the_others(self, repository: Path, tmp_path: Path) -> None:
        with running(repository, tmp_path, *OPTIONS, "--workers", "2") as gateway:
            engine = children_of(gateway.pid)["engine"]
            os.kill(workers_of(gateway)["worker 1"], signal.SIGKILL)
            wait_until(lambda: "worker 1" not in workers_of(gateway))
            assert outputs_of(predict_anew(gateway)) == {"y": [3, 5, 7]}
            wait_for_workers(gateway)
            predict_often(gateway, 16)
            assert children_of(gateway.pid)["engine"] == engine


class TestRefusing:
    @pytest.mark.skipif(
        "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this machine has CUDA"
    )
    def test_a_device_that_the_engine_cannot_have(self, repository: Path, tmp_path: Path) -> None:
        gateway = GatewayProcess(repository, tmp_path, *OPTIONS, "--device", "cuda")
        try:
            assert gateway.wait_until_stopped(40.0) == 2
        finally:
            gateway.kill()
        assert "error: device cuda needs CUDAExecutionProvider" in gateway.log
        assert "error: the engine process did not start; what it said stands above" in gateway.log

    def test_an_arena_without_an_engine(self, repository: Path, tmp_path: Path) -> None:
        line = refused_start(repository, tmp_path, "--no-collector", "--engine-arena-bytes", "2000000")
        assert "engine_arena_bytes has no effect without engine process" in line

    @pytest.mark.parametrize("options", [{"engine": "thread"}, {"engine": "process", "engine_arena_bytes": 1000}])
    def test_values_that_make_no_sense(self, options: dict[str, object]) -> None:
        with pytest.raises(StartupError, match="engine"):
            load_settings(options)

    def test_inputs_beyond_the_arena_name_the_setting(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        write_version(models, "wide", "1", onnx_models.affine_of_any_width())
        with running(models, tmp_path / "data", *OPTIONS, "--engine-arena-bytes", str(2**20)) as gateway:
            body = orjson.dumps(inputs(tensor("x", "FP32", [1.0] * 2**18 + [1.0])))
            response = gateway.public.post("/v2/models/wide/infer", content=body)
            assert "raise engine_arena_bytes" in error_of(response, 413)
            body = orjson.dumps(inputs(tensor("x", "FP32", [1.0] * 2**18)))
            response = gateway.public.post("/v2/models/wide/infer", content=body)
            assert outputs_of(response) == {"y": [3.0] * 2**18}


def test_a_data_directory_too_deep_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    assert engine_socket(tmp_path) == tmp_path / "engine" / "engine.sock"
    assert len(str(engine_socket(tmp_path / ("d" * 90)))) <= 100
