"""A model version as Triton's `ModelConfig` (Triton's "Model Configuration Extension").

Clients such as `perf_analyzer` read from it whether requests may carry several rows. Numbers that Triton has no field
for stand under `parameters`.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.protocol.datatypes import BYTES
from gateway.protocol.parameters import DEFAULT_PRIORITY, MICROSECONDS, PRIORITY_LEVELS
from gateway.types import JsonObject, Signature, TensorSpec

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"


class QueueLimits(NamedTuple):
    """Limits of one version's queue."""

    max_batch_rows: int
    chosen_rows: tuple[int, ...]
    """What a run is given at most now, or the only numbers that it may be given."""
    max_request_rows: int
    max_queue_rows: int
    timeout: float
    """Longest wait in seconds."""
    max_delay: float = 0.0
    """Seconds that a request waits for others while nothing runs."""


def model_config(name: str, signature: Signature, limits: QueueLimits, *, file: str, gpu: int | None) -> JsonObject:
    """The configuration; dims are without the row axis where `max_batch_size` is above 0. No `gpu` is the CPU.

    Triton knows no rows but those on axis 0: for a model with others it is 0, as for one without.
    """
    is_batchable = signature.has_rows_first
    config: JsonObject = {
        "name": name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": {"all": {}},
        "max_batch_size": limits.max_batch_rows if is_batchable else 0,
        "input": [_input(spec, is_batchable) for spec in signature.inputs],
        "output": [_output(spec, is_batchable) for spec in signature.outputs],
        "instance_group": [_instance(name, gpu)],
        "default_model_filename": file,
        "parameters": {
            "max_request_rows": {"string_value": str(limits.max_request_rows)},
            "max_queue_rows": {"string_value": str(limits.max_queue_rows)},
        },
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": False},
    }
    if is_batchable:
        config["dynamic_batching"] = _dynamic_batching(limits)
    return config


def _tensor(spec: TensorSpec, is_batchable: bool) -> JsonObject:
    datatype = "STRING" if spec.datatype == BYTES else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[is_batchable:])}


def _input(spec: TensorSpec, is_batchable: bool) -> JsonObject:
    rest = {"format": "FORMAT_NONE", "is_shape_tensor": False, "allow_ragged_batch": False, "optional": False}
    return {**_tensor(spec, is_batchable), **rest}


def _output(spec: TensorSpec, is_batchable: bool) -> JsonObject:
    return {**_tensor(spec, is_batchable), "label_filename": "", "is_shape_tensor": False}


def _instance(name: str, gpu: int | None) -> JsonObject:
    kind, gpus = ("KIND_CPU", []) if gpu is None else ("KIND_GPU", [gpu])
    return {"name": f"{name}_0", "kind": kind, "count": 1, "gpus": gpus}


def _dynamic_batching(limits: QueueLimits) -> JsonObject:
    return {
        "preferred_batch_size": list(limits.chosen_rows),
        "max_queue_delay_microseconds": round(limits.max_delay * MICROSECONDS),
        "preserve_ordering": False,
        "priority_levels": PRIORITY_LEVELS,
        "default_priority_level": DEFAULT_PRIORITY,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round(limits.timeout * MICROSECONDS),
            "allow_timeout_override": True,
        },
    }
