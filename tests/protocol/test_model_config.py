from __future__ import annotations

import pytest

from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.protocol.model_config import QueueLimits, model_config
from gateway.types import JsonObject, Signature, TensorSpec

LIMITS = QueueLimits(
    max_batch_rows=64, chosen_rows=(8, 32), max_request_rows=1024, max_queue_rows=4096, timeout=30.0, max_delay=0.002
)


def config_of(signature: Signature, *, gpu: int | None = None) -> JsonObject:
    return model_config("m", signature, LIMITS, file="model.onnx", gpu=gpu)


def tensors(*shapes: tuple[int, ...], datatype: str = "FP32") -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"t{index}", datatype, shape) for index, shape in enumerate(shapes))


def test_a_model_with_a_row_axis_has_it_in_the_batch_size_and_not_in_the_dims() -> None:
    config = config_of(Signature(tensors((-1, 3), (-1, -1, 4)), tensors((-1,))))
    assert config["max_batch_size"] == 64
    assert [tensor["dims"] for tensor in config["input"]] == [[3], [-1, 4]]
    assert [tensor["dims"] for tensor in config["output"]] == [[]]
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [8, 32],
        "max_queue_delay_microseconds": 2000,
        "preserve_ordering": False,
        "priority_levels": 3,
        "default_priority_level": 3,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": 30_000_000,
            "allow_timeout_override": True,
        },
    }


def test_rows_on_another_axis_are_no_batch_to_triton() -> None:
    inputs = (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("state", "FP32", (2, -1), axis=1))
    config = config_of(Signature(inputs, tensors((-1,))))
    assert config["max_batch_size"] == 0
    assert [tensor["dims"] for tensor in config["input"]] == [[-1, 3], [2, -1]]


@pytest.mark.parametrize("shape", [(2, 2), (), (3, -1)])
def test_a_model_without_one_has_batch_size_0_and_all_its_dims(shape: tuple[int, ...]) -> None:
    config = config_of(Signature(tensors(shape), tensors(shape)))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == config["output"][0]["dims"] == list(shape)
    assert "dynamic_batching" not in config


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_datatypes_have_the_names_of_model_config(datatype: str) -> None:
    config = config_of(Signature(tensors((-1, 1), datatype=datatype), tensors((-1, 1), datatype=datatype)))
    expected = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    assert config["input"][0]["data_type"] == config["output"][0]["data_type"] == expected


def test_the_rest_says_what_is_true_of_every_model_here() -> None:
    config = config_of(Signature(tensors((-1, 3)), tensors((-1, 3))))
    assert (config["name"], config["platform"], config["backend"]) == ("m", "onnxruntime_onnx", "onnxruntime")
    assert config["version_policy"] == {"all": {}}
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["response_cache"] == {"enable": False}
    assert config["default_model_filename"] == "model.onnx"
    assert config["parameters"] == {
        "max_request_rows": {"string_value": "1024"},
        "max_queue_rows": {"string_value": "4096"},
    }


@pytest.mark.parametrize(("gpu", "kind", "gpus"), [(None, "KIND_CPU", []), (0, "KIND_GPU", [0]), (2, "KIND_GPU", [2])])
def test_the_one_instance_is_on_the_configured_device(gpu: int | None, kind: str, gpus: list[int]) -> None:
    config = config_of(Signature(tensors((-1, 3)), tensors((-1, 3))), gpu=gpu)
    assert config["instance_group"] == [{"name": "m_0", "kind": kind, "count": 1, "gpus": gpus}]
