"""The models and the bodies that ask them: an MLP on 30 floats, an image that is all decoding, and magika's."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import orjson
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from bench.places import DOWNLOADS, MODELS

SEED = 7
HIDDEN = (512, 512, 256)
FEATURES = 30
IMAGE_SHAPE = (3, 224, 224)
MAGIKA = "magika==1.0.3"
MAGIKA_LENGTH = 2048
MAGIKA_CONFIG = "[batching]\nmax_queue_rows = 128\n"
"""At some 500 rows a second the default queue of 4,096 rows would be eight seconds long."""
OPSET = 17
IR_VERSION = 8
"""Read by every ONNX Runtime that a peer may bring."""


def model_file(name: str) -> Path:
    """The model every server loads."""
    return MODELS / name / "1" / "model.onnx"


def prepare() -> None:
    """Make the models that are not there yet. `mlp` has two versions with the same file, for the 90/10 route."""
    for name, build in (("mlp", _build_mlp), ("image", _build_image), ("magika", _fetch_magika)):
        path = model_file(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            build(path)
    second = MODELS / "mlp" / "2" / "model.onnx"
    if not second.exists():
        second.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_file("mlp"), second)
    (MODELS / "magika" / "model.toml").write_text(MAGIKA_CONFIG)


def rows(name: str, count: int) -> Any:
    """`count` rows for a model: real ones for the MLP, seeded noise in [0, 1) or in bytes for the others."""
    random = np.random.default_rng(SEED)
    if name == "mlp":
        features = np.asarray(load_breast_cancer().data, np.float32)
        return np.resize(features, (count, FEATURES))
    if name == "image":
        return random.random((count, *IMAGE_SHAPE)).astype(np.float32).round(6)
    return random.integers(0, 256, (count, MAGIKA_LENGTH)).astype(np.int32)


def oip_body(name: str, count: int) -> bytes:
    """A request of the Open Inference Protocol with flat data."""
    values = rows(name, count)
    return orjson.dumps({"inputs": [{**_tensor(name, values), "data": values.ravel()}]}, option=_NUMPY)


def binary_body(name: str, count: int) -> tuple[bytes, int]:
    """The same request with binary tensor data, and the length of its JSON part."""
    values = rows(name, count)
    head = orjson.dumps({"inputs": [{**_tensor(name, values), "parameters": {"binary_data_size": values.nbytes}}]})
    return head + values.tobytes(), len(head)


def row_body(name: str) -> bytes:
    """The body of the peers that have no protocol of their own: `{"x": row}` with the same row."""
    return orjson.dumps({"x": rows(name, 1)[0]}, option=_NUMPY)


def expected(name: str, count: int) -> Any:
    """What the model itself says to these rows."""
    session = onnxruntime.InferenceSession(str(model_file(name)), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows(name, count)})[0]


_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_INPUT_NAMES = {"magika": "bytes"}


def _tensor(name: str, values: Any) -> dict[str, Any]:
    datatype = "INT32" if values.dtype == np.int32 else "FP32"
    return {"name": _INPUT_NAMES.get(name, "x"), "shape": list(values.shape), "datatype": datatype}


def _build_mlp(path: Path) -> None:
    """Train on standardised features; the standardisation becomes part of the first layer."""
    data = load_breast_cancer()
    scaler = StandardScaler().fit(data.data)
    classifier = MLPClassifier(HIDDEN, max_iter=40, early_stopping=True, random_state=SEED)
    classifier.fit(scaler.transform(data.data), data.target)
    weights, biases = list(classifier.coefs_), list(classifier.intercepts_)
    biases[0] = biases[0] - (scaler.mean_ / scaler.scale_) @ weights[0]
    weights[0] = weights[0] / scaler.scale_[:, None]
    # One logistic unit is the softmax over its halves with both signs.
    weights[-1] = np.hstack([-weights[-1] / 2, weights[-1] / 2])
    biases[-1] = np.hstack([-biases[-1] / 2, biases[-1] / 2])
    save(path, mlp_nodes(len(weights)), mlp_constants(weights, biases), (FEATURES,), (2,))


def mlp_nodes(layers: int) -> list[Any]:
    """`x` through as many dense layers to `y`."""
    nodes, source = [], "x"
    for layer in range(layers):
        is_last = layer == layers - 1
        activation, output = ("Softmax", "y") if is_last else ("Relu", f"h{layer}")
        nodes.append(helper.make_node("Gemm", [source, f"w{layer}", f"b{layer}"], [f"z{layer}"]))
        nodes.append(helper.make_node(activation, [f"z{layer}"], [output]))
        source = output
    return nodes


def mlp_constants(weights: list[Any], biases: list[Any]) -> list[Any]:
    """Weights of shape [in, out] and biases of shape [out], under the names that `mlp_nodes` has for them."""
    named = [(f"w{index}", values) for index, values in enumerate(weights)]
    named += [(f"b{index}", values) for index, values in enumerate(biases)]
    return [numpy_helper.from_array(values.astype(np.float32), name) for name, values in named]


def _build_image(path: Path) -> None:
    """The mean of each channel: 150,528 floats go in and next to nothing is computed, so that decoding dominates."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    save(path, [node], [], IMAGE_SHAPE, (IMAGE_SHAPE[0],))


def save(
    path: Path, nodes: list[Any], constants: list[Any], shape: tuple[int | str, ...], output: tuple[int, ...]
) -> None:
    """A model from `x` to `y`, both with any number of rows of the shapes given; a name is a variable extent."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])
    target = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", *output])
    graph = helper.make_graph(nodes, path.parent.parent.name, [source], [target], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _fetch_magika(path: Path) -> None:
    """Magika finds the type of a file from 2,048 of its bytes: a small transformer-like model, bound by computing."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(DOWNLOADS), MAGIKA]
    subprocess.run(command, check=True)
    wheel = next(DOWNLOADS.glob("magika-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".onnx"))
        path.write_bytes(archive.read(member))
