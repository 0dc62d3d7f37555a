"""Tiny ONNX models, each with one property that matters to the gateway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9
WIDE_COLUMNS = 4096

Extents: TypeAlias = Sequence[int | str | None] | None

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def dtype_of(datatype: str) -> Any:
    """Of the arrays that a tensor of the datatype is made of."""
    return helper.tensor_dtype_to_np_dtype(ONNX_TYPES[datatype])


def value(name: str, datatype: str, shape: Extents) -> Any:
    """An input or output; a string or None in the shape is a variable extent."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def constant(name: str, array: Any) -> Any:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], constants: Sequence[Any] = ()) -> bytes:
    """A checked model as bytes."""
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(constants))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def affine(factor: float = 2.0, columns: int | str = 3) -> bytes:
    """`y = factor * x + 1`, FP32 [rows, columns]."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["scaled"]), helper.make_node("Add", ["scaled", "one"], ["y"])]
    constants = [constant("factor", np.float32(factor)), constant("one", np.float32(1.0))]
    return model(nodes, [value("x", "FP32", ["n", columns])], [value("y", "FP32", ["n", columns])], constants)


def affine_of_any_width() -> bytes:
    """`y = 2 * x + 1`, FP32 [rows, any]."""
    return affine(columns="m")


def row_sum() -> bytes:
    """`y[i] = sum(x[i])`, FP32 [rows, any] to [rows]: rows of different lengths cannot share a run."""
    node = helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)
    return model(
        [node],
        [value("x", "FP32", ["n", "m"])],
        [value("y", "FP32", ["n"])],
        [constant("axis", np.array([1], np.int64))],
    )


def identity(datatype: str, shape: Extents = ("n", 2)) -> bytes:
    """The input as it came."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x", datatype, shape)], [value("y", datatype, shape)])


def pair() -> bytes:
    """Two inputs as they came: `a` FP32 [rows, 2] is `c`, `b` INT64 [rows] is `d`."""
    nodes = [helper.make_node("Identity", ["a"], ["c"]), helper.make_node("Identity", ["b"], ["d"])]
    inputs = [value("a", "FP32", ["n", 2]), value("b", "INT64", ["n"])]
    return model(nodes, inputs, [value("c", "FP32", ["n", 2]), value("d", "INT64", ["n"])])


def lookup() -> bytes:
    """`y[i] = table[index[i]]`, a table of four rows: any other index fails the whole run."""
    node = helper.make_node("Gather", ["table", "index"], ["y"], axis=0)
    table = constant("table", np.arange(8, dtype=np.float32).reshape(4, 2))
    return model([node], [value("index", "INT64", ["n"])], [value("y", "FP32", ["n", 2])], [table])


def pairs() -> bytes:
    """Two numbers become a row of two: fails for an odd number of them, and so for a single row of zeros."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = constant("shape", np.array([-1, 2], np.int64))
    return model([node], [value("x", "FP32", ["n"])], [value("y", "FP32", ["k", 2])], [shape])


def total() -> bytes:
    """One number for all rows, under a signature that promises one a row."""
    nodes = [
        # An axis that depends on the values, or ONNX Runtime would infer the true shape and know better.
        helper.make_node("Mul", ["x", "none"], ["nothing"]),
        helper.make_node("ReduceMax", ["nothing"], ["zero"], keepdims=0),
        helper.make_node("Cast", ["zero"], ["axis"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["axis", "one"], ["axes"]),
        helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1),
    ]
    constants = [constant("none", np.float32(0.0)), constant("one", np.array([1], np.int64))]
    return model(nodes, [value("x", "FP32", ["n", 2])], [value("y", "FP32", ["k", 2])], constants)


def positions() -> bytes:
    """Row and column of every value that is not zero: how many rows come out depends on the values."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Transpose", ["found"], ["y"], perm=[1, 0]),
    ]
    return model(nodes, [value("x", "FP32", ["n", 2])], [value("y", "INT64", ["k", 2])])


def classifier() -> bytes:
    """Two classes by the sign of `x`: `label` INT64 [rows], `probability` FP32 [rows, 2]."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["positive"]),
        helper.make_node("Sub", ["one", "positive"], ["negative"]),
        helper.make_node("Concat", ["negative", "positive"], ["probability"], axis=1),
        helper.make_node("ArgMax", ["probability"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [value("label", "INT64", ["n"]), value("probability", "FP32", ["n", 2])]
    return model(nodes, [value("x", "FP32", ["n", 1])], outputs, [constant("one", np.float32(1.0))])


def classifier_without_score() -> bytes:
    """As `classifier`, but `probability` is NaN wherever `x` is negative: the logarithm of a negative number."""
    nodes = [
        helper.make_node("Log", ["x"], ["probability"]),
        helper.make_node("Constant", [], ["zero"], value=constant("zero", np.float32(0.0))),
        helper.make_node("Greater", ["x", "zero"], ["is_positive"]),
        helper.make_node("Cast", ["is_positive"], ["flags"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["flags", "axis"], ["label"]),
    ]
    outputs = [value("label", "INT64", ["n"]), value("probability", "FP32", ["n", 1])]
    axis = constant("axis", np.array([1], np.int64))
    return model(nodes, [value("x", "FP32", ["n", 1])], outputs, [axis])


def logarithm() -> bytes:
    """`y = log(x)`: infinite at zero, no number below."""
    node = helper.make_node("Log", ["x"], ["y"])
    return model([node], [value("x", "FP32", ["n", 1])], [value("y", "FP32", ["n", 1])])


def fixed_rows() -> bytes:
    """A model without a variable axis: FP32 [2, 2] to [2, 2]."""
    return identity("FP32", (2, 2))


def busy() -> bytes:
    """Works for as many turns (some 20 to 50 microseconds each) as its largest input says, then answers the input."""
    size = 96
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "matrix"], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["condition"], ["go_on"]),
        ],
        "turn",
        [value("turn", "INT64", []), value("condition", "BOOL", []), value("state", "FP32", [size, size])],
        [value("go_on", "BOOL", []), value("next", "FP32", [size, size])],
        [constant("matrix", np.full((size, size), 0.01, np.float32))],
    )
    nodes = [
        helper.make_node("ReduceMax", ["turns"], ["limit"], keepdims=0),
        helper.make_node("Loop", ["limit", "yes", "start"], ["end"], body=body),
        helper.make_node("ReduceSum", ["end"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "none"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["zero"], to=TensorProto.INT64),
        # The sum takes part in the answer, or the whole loop would be optimised away.
        helper.make_node("Add", ["turns", "zero"], ["y"]),
    ]
    constants = [
        constant("yes", np.array(True)),
        constant("start", np.eye(size, dtype=np.float32)),
        constant("none", np.float32(0.0)),
    ]
    return model(nodes, [value("turns", "INT64", ["n", 1])], [value("y", "INT64", ["n", 1])], constants)


def large(size: int) -> bytes:
    """`y = x @ m`, FP32 [rows, columns], with a matrix of about `size` bytes."""
    columns = math.isqrt(size // 4)
    matrix = np.random.default_rng(1).normal(size=(columns, columns)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "m"], ["y"])
    shape: Extents = ["n", columns]
    return model([node], [value("x", "FP32", shape)], [value("y", "FP32", shape)], [constant("m", matrix)])


def wide() -> bytes:
    """`y = relu(x @ a) @ b`, FP32 [rows, 8] to [rows, 1]: in between there are `WIDE_COLUMNS` columns of memory."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "b"], ["y"]),
    ]
    a, b = np.ones((8, WIDE_COLUMNS), np.float32), np.ones((WIDE_COLUMNS, 1), np.float32)
    constants = [constant("a", a), constant("b", b)]
    return model(nodes, [value("x", "FP32", ["n", 8])], [value("y", "FP32", ["n", 1])], constants)


def write_version(models: Path, name: str, version: str, content: bytes, toml: str = "") -> Path:
    """`<models>/<name>/<version>/model.onnx`, and `model.toml` if given; the version's folder."""
    folder = models / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    if toml:
        (models / name / "model.toml").write_text(toml, "utf-8")
    return folder
