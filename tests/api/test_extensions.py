"""Triton's extensions as NVIDIA's client calls them, on a gateway that other tests use too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from gateway.runtime.manifest import LEARNED_ROWS_LIMIT
from tests.support import triton
from tests.support.requests import AFFINE, error_of, inputs, tensor
from tests.support.running import GatewayProcess

DURATIONS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[Any]:
    with triton.connected(gateway.public_url) as connected:
        yield connected


def stats_of(client: Any, model: str, version: str = "") -> dict[str, Any]:
    (stats,) = client.get_inference_statistics(model, version)["model_stats"]
    assert isinstance(stats, dict)
    return stats


class TestStatistics:
    def test_requests_rows_and_runs_are_counted(self, client: Any) -> None:
        before = stats_of(client, "affine", "1")
        for values in ([1.0], [1.0, 2.0, 3.0]):
            client.infer("affine", [triton.rows(*values)], model_version="1", outputs=triton.outputs("y"))
        after = stats_of(client, "affine", "1")
        assert after.keys() == {
            *("name", "version", "last_inference", "inference_count", "execution_count"),
            *("inference_stats", "response_stats", "batch_stats", "memory_usage"),
        }
        assert (after["name"], after["version"]) == ("affine", "1")
        assert after["inference_count"] - before["inference_count"] == 4
        assert after["execution_count"] - before["execution_count"] == 2
        assert after["last_inference"] > before["last_inference"]
        durations = after["inference_stats"]
        assert durations.keys() == DURATIONS
        for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
            assert durations[name]["count"] - before["inference_stats"][name]["count"] == 2
        parts = sum(durations[name]["ns"] for name in ("queue", "compute_infer", "compute_output"))
        assert durations["success"]["ns"] == pytest.approx(parts, abs=3)
        assert durations["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
        assert {1, 3} <= {batch["batch_size"] for batch in after["batch_stats"]}
        for batch in after["batch_stats"]:
            assert batch["compute_infer"]["count"] == batch["compute_output"]["count"] >= 1
        assert sum(batch["compute_infer"]["count"] for batch in after["batch_stats"]) == after["execution_count"]

    def test_a_request_that_fails_in_the_model_counts_as_a_failure(self, client: Any) -> None:
        before = stats_of(client, "lookup")["inference_stats"]
        with pytest.raises(InferenceServerException, match="the model refuses these values"):
            client.infer("lookup", [triton.tensor(np.array([7]), "INT64", "index")], outputs=triton.outputs("y"))
        after = stats_of(client, "lookup")["inference_stats"]
        assert after["fail"]["count"] == before["fail"]["count"] + 1
        assert after["fail"]["ns"] > before["fail"]["ns"]
        assert after["success"] == before["success"]

    def test_numbers_that_are_refused_only_when_the_batch_reads_them_are_no_failure(
        self, client: Any, gateway: GatewayProcess
    ) -> None:
        def ask(numbers: str) -> int:
            tensor = f'{{"name":"x","shape":[1,3],"datatype":"FP32","data":[{numbers}]}}'
            return gateway.public.post("/v2/models/affine/infer", content=f'{{"inputs":[{tensor}]}}').status_code

        before = stats_of(client, "affine", "2")["inference_stats"]
        # What surrounds the numbers is known from the second body on.
        assert [ask("1,2,3"), ask("4,5,6"), ask('7,8,"9"')] == [200, 200, 400]
        after = stats_of(client, "affine", "2")["inference_stats"]
        assert after["success"]["count"] == before["success"]["count"] + 2
        assert after["fail"] == before["fail"]

    def test_without_a_version_all_of_the_model_and_without_a_model_all_there_are(
        self, client: Any, gateway: GatewayProcess
    ) -> None:
        two = client.get_inference_statistics("affine")["model_stats"]
        assert [(stats["name"], stats["version"]) for stats in two] == [("affine", "1"), ("affine", "2")]
        every = client.get_inference_statistics()["model_stats"]
        assert {stats["name"] for stats in every} == set(gateway.public.get("/v2/models").json()["models"])

    @pytest.mark.parametrize(("model", "version"), [("absent", ""), ("affine", "9")])
    def test_what_is_not_loaded_is_404(self, client: Any, model: str, version: str) -> None:
        with pytest.raises(InferenceServerException, match="unknown") as caught:
            client.get_inference_statistics(model, version)
        assert caught.value.status() == "404"


class TestConfig:
    @pytest.mark.parametrize("version", ["", "1"])
    def test_it_agrees_with_the_metadata(self, client: Any, version: str) -> None:
        config = client.get_model_config("affine", version)
        metadata = client.get_model_metadata("affine", version)
        assert config["max_batch_size"] == LEARNED_ROWS_LIMIT
        assert config["dynamic_batching"]["preferred_batch_size"] <= [LEARNED_ROWS_LIMIT]
        for plural, singular in (("inputs", "input"), ("outputs", "output")):
            assert [t["name"] for t in config[singular]] == [t["name"] for t in metadata[plural]]
            assert [[-1, *t["dims"]] for t in config[singular]] == [t["shape"] for t in metadata[plural]]
            assert [t["data_type"] for t in config[singular]] == [f"TYPE_{t['datatype']}" for t in metadata[plural]]
        assert config["platform"] == metadata["platform"]
        assert config["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == 30_000_000
        assert config["instance_group"][0]["kind"] == "KIND_CPU"

    def test_the_limits_of_model_toml_are_in_it(self, client: Any) -> None:
        config = client.get_model_config("busy")
        assert config["max_batch_size"] == 1
        assert config["parameters"]["max_queue_rows"] == {"string_value": "4"}

    def test_a_model_without_a_row_axis_says_so(self, client: Any) -> None:
        config = client.get_model_config("fixed")
        assert config["max_batch_size"] == 0
        assert config["input"][0]["dims"] == [2, 2]

    @pytest.mark.parametrize(("model", "version"), [("absent", ""), ("affine", "9")])
    def test_what_is_not_loaded_is_404(self, client: Any, model: str, version: str) -> None:
        with pytest.raises(InferenceServerException, match="unknown"):
            client.get_model_config(model, version)


class TestParameters:
    def test_those_of_the_clients_own_are_accepted(self, client: Any) -> None:
        result = client.infer(
            "affine", [triton.rows(1.0)], outputs=triton.outputs("y"), parameters={"customer": "a", "is_test": True}
        )
        assert result.as_numpy("y").tolist() == [[4.0, 4.0, 4.0]]

    def test_those_of_tensors_too(self, gateway: GatewayProcess) -> None:
        x = {**tensor("x", "FP32", [1, 2, 3]), "parameters": {"unit": "mm"}}
        outputs = [{"name": "y", "parameters": {"unit": "mm"}}]
        assert gateway.predict("affine", inputs(x, outputs=outputs)).status_code == 200

    def test_priority_and_timeout_are_accepted(self, client: Any) -> None:
        more = {"priority": 1, "timeout": 5_000_000}
        assert client.infer("affine", [triton.rows(1.0)], outputs=triton.outputs("y"), **more).as_numpy("y") is not None

    def test_a_stateful_sequence_is_refused(self, client: Any) -> None:
        with pytest.raises(InferenceServerException, match="stateful sequences are not supported") as caught:
            client.infer("affine", [triton.rows(1.0)], outputs=triton.outputs("y"), sequence_id=3, sequence_start=True)
        assert caught.value.status() == "400"

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"triton_x": 1}, "parameters.triton_x: names that start with 'triton_' are reserved"),
            ({"priority": 4}, "parameters.priority: expected a whole number from 0 (the default) to 3"),
            ({"timeout": -1}, "parameters.timeout: expected a whole number from 0 on"),
            ({"a": [1]}, "parameters.a: expected a string, a number or a bool, got [1]"),
            ([], "parameters: expected an object"),
        ],
    )
    def test_what_cannot_be_honoured_is_400_by_either_door(
        self, gateway: GatewayProcess, parameters: Any, message: str
    ) -> None:
        document = {**AFFINE, "parameters": parameters}
        for headers in ({}, {"Accept-Encoding": "identity", "Connection": "close"}, {"Upgrade": "nothing"}):
            assert error_of(gateway.predict("affine", document, headers=headers), 400).startswith(message)

    def test_a_parameter_of_a_tensor_is_checked_as_well(self, gateway: GatewayProcess) -> None:
        x = {**tensor("x", "FP32", [1, 2, 3]), "parameters": {"unit": None}}
        message = error_of(gateway.predict("affine", inputs(x)), 400)
        assert message.startswith("inputs[0].parameters.unit: expected a string")


class TestSharedMemory:
    def test_a_tensor_in_shared_memory_is_501(self, client: Any) -> None:
        x = triton.rows(1.0)
        x.set_shared_memory("region", 12)
        with pytest.raises(InferenceServerException, match="shared memory is not supported") as caught:
            client.infer("affine", [x], outputs=triton.outputs("y"))
        assert caught.value.status() == "501"

    @pytest.mark.parametrize(
        ("call", "arguments"),
        [
            ("get_system_shared_memory_status", ()),
            ("get_system_shared_memory_status", ("region",)),
            ("register_system_shared_memory", ("region", "/key", 12)),
            ("unregister_system_shared_memory", ()),
            ("unregister_system_shared_memory", ("region",)),
            ("get_cuda_shared_memory_status", ()),
            ("get_cuda_shared_memory_status", ("region",)),
            ("register_cuda_shared_memory", ("region", b"handle", 0, 12)),
            ("unregister_cuda_shared_memory", ()),
            ("unregister_cuda_shared_memory", ("region",)),
        ],
    )
    def test_every_call_about_it_is_501_with_the_remedy(
        self, client: Any, call: str, arguments: tuple[Any, ...]
    ) -> None:
        with pytest.raises(InferenceServerException, match="send tensors in the request") as caught:
            getattr(client, call)(*arguments)
        assert caught.value.status() == "501"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/stats"),
        ("POST", "/v2/models/affine/stats"),
        ("PUT", "/v2/models/affine/versions/1/config"),
        ("GET", "/v2/systemsharedmemory/region/r/register"),
        ("POST", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/repository/index"),
        ("GET", "/v2/repository/models/affine/load"),
        ("DELETE", "/v2/logging"),
    ],
)
def test_the_wrong_verb_is_405(gateway: GatewayProcess, method: str, path: str) -> None:
    assert error_of(gateway.public.request(method, path), 405) == "Method Not Allowed"
