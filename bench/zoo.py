"""The models of the `runtime` scenarios, and repositories that hold them under several settings."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
import pyarrow.parquet as pq
from onnx import helper, numpy_helper

from bench import model
from bench.places import BUNDLED, MODELS, REPOSITORIES
from gateway.runtime.manifest import MODEL_CONFIG_FILE, MODEL_FILE, REFERENCE_FILE, read_manifest

DENSE_HIDDEN = (4096, 4096)
"""68 MB of weights: a run of one row is bound by reading them, so that rows together cost little more."""
DENSE_FEATURES = 64
SEQUENCE_WIDTH = 64
DATATYPES = {"f": "FP32", "i": "INT32", "U": "BYTES", "O": "BYTES"}
"""By the kind of a numpy dtype."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of a repository."""

    file: Path
    batching: str = ""
    """A line of TOML; empty leaves everything to be learned."""
    versions: int = 1
    """With the same file."""


def repository(name: str, entries: Mapping[str, Entry]) -> Path:
    """Make it anew, with one folder for each entry."""
    root = REPOSITORIES / name
    shutil.rmtree(root, ignore_errors=True)
    for model_name, entry in entries.items():
        for version in range(1, entry.versions + 1):
            folder = root / model_name / str(version)
            folder.mkdir(parents=True)
            # Another name for the same file: a repository of 24 models takes the room of one.
            os.link(entry.file, folder / MODEL_FILE)
        if entry.batching:
            (root / model_name / MODEL_CONFIG_FILE).write_text(f"[batching]\n{entry.batching}\n")
    return root


def file_of(name: str) -> Path:
    """Of a bundled model as `<name>-<version>` or `<name>`, one of the bench's, or one that is built here."""
    bundled, _, version = name.partition("-")
    if (BUNDLED / bundled).is_dir():
        return BUNDLED / bundled / (version or "1") / MODEL_FILE
    path = model.model_file(name)
    if name not in BUILDERS:
        return path
    path = REPOSITORIES / "built" / name / "1" / MODEL_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        BUILDERS[name](path)
    return path


def rows_of(name: str, count: int) -> dict[str, Any]:
    """By input: as many rows. For a bundled model they are of its reference."""
    file = file_of(name)
    if BUNDLED in file.parents:
        return _reference_rows(file, count)
    if file.is_relative_to(MODELS):
        values = model.rows(name, count)
    else:
        values = np.random.default_rng(model.SEED).random((count, DENSE_FEATURES)).astype(np.float32).round(6)
    return {"bytes" if name == "magika" else "x": values}


def sequences(length: int) -> dict[str, Any]:
    """One row for the model `sequence`."""
    return {"x": np.random.default_rng(model.SEED).random((1, length)).astype(np.float32).round(6)}


def body(inputs: Mapping[str, Any]) -> bytes:
    """A request of the Open Inference Protocol with flat JSON data."""
    tensors = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": DATATYPES[values.dtype.kind],
            "data": values.ravel().tolist() if DATATYPES[values.dtype.kind] == "BYTES" else values.ravel(),
        }
        for name, values in inputs.items()
    ]
    return orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)


def expected(file: Path, inputs: Mapping[str, Any]) -> Any:
    """The first output, as the model itself says it."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {name: values.astype(object) if values.dtype.kind == "U" else values for name, values in inputs.items()}
    return session.run(None, given)[0]


def _reference_rows(file: Path, count: int) -> dict[str, Any]:
    manifest = read_manifest(file.parent)
    assert manifest is not None  # noqa: S101 -- all bundled models have one
    table = pq.read_table(file.with_name(REFERENCE_FILE)).slice(0, count)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rows = {}
    for tensor in session.get_inputs():
        features = sorted((one for one in manifest.features if one.input == tensor.name), key=lambda one: one.column)
        columns = [np.asarray(table.column(feature.name).to_pylist()) for feature in features]
        is_text = tensor.type == "tensor(string)"
        values = np.stack(columns, axis=1).astype(np.str_ if is_text else np.float32)
        rows[tensor.name] = values.reshape(count, *tensor.shape[1:])
    return rows


def _build_dense(path: Path) -> None:
    """Random weights: nothing but the time of a run counts."""
    random = np.random.default_rng(model.SEED)
    sizes = (DENSE_FEATURES, *DENSE_HIDDEN, 2)
    weights = [random.standard_normal(pair) / np.sqrt(pair[0]) for pair in itertools.pairwise(sizes)]
    biases = [np.zeros(size) for size in sizes[1:]]
    constants = model.mlp_constants(weights, biases)
    model.save(path, model.mlp_nodes(len(weights)), constants, (DENSE_FEATURES,), (2,))


def _build_sequence(path: Path) -> None:
    """Two dense layers at each place of a sequence of any length, and their mean: the time grows with the length."""
    random = np.random.default_rng(model.SEED)
    width = SEQUENCE_WIDTH
    constants = [
        numpy_helper.from_array(np.array([2]), "last"),
        *(
            numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)
            for name, shape in (("w0", (1, width)), ("w1", (width, width)), ("w2", (width, 2)))
        ),
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["places"]),
        helper.make_node("MatMul", ["places", "w0"], ["z0"]),
        helper.make_node("Relu", ["z0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["z1"]),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("ReduceMean", ["h1"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w2"], ["y"]),
    ]
    model.save(path, nodes, constants, ("length",), (2,))


BUILDERS = {"dense": _build_dense, "sequence": _build_sequence}
