"""ONNX models whose rows are not simply on axis 0 of every tensor, or only seem to be."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.support.onnx_models import Extents, constant, model, value


def recurrent() -> bytes:
    """`y = x + state[0]`, `new_state = x + state / 2`: `x` and `y` FP32 [rows, 3], the states FP32 [2, rows, 3]."""
    nodes = [
        helper.make_node("Gather", ["state", "zero"], ["first"], axis=0),
        helper.make_node("Add", ["x", "first"], ["y"]),
        helper.make_node("Mul", ["state", "half"], ["halved"]),
        helper.make_node("Add", ["x", "halved"], ["new_state"]),
    ]
    inputs = [value("x", "FP32", ["N", 3]), value("state", "FP32", [2, "N", 3])]
    outputs = [value("y", "FP32", ["N", 3]), value("new_state", "FP32", [2, "N", 3])]
    return model(nodes, inputs, outputs, [constant("zero", np.int64(0)), constant("half", np.float32(0.5))])


def running_total(names: tuple[str, str] = ("sequence", "batch"), output: Extents = None) -> bytes:
    """Sums over axis 0, FP32 [length, rows, 2]: rows lie on axis 1, and only there."""
    node = helper.make_node("CumSum", ["x", "axis"], ["y"])
    shape: Extents = [*names, 2]
    return model(
        [node], [value("x", "FP32", shape)], [value("y", "FP32", output or shape)], [constant("axis", np.int64(0))]
    )


def resampled(rate: Extents = (), signal: Extents = ("N", "T")) -> bytes:
    """`y = rate * signal`, with one rate for all rows."""
    node = helper.make_node("Mul", ["signal", "rate"], ["y"])
    inputs = [value("signal", "FP32", signal), value("rate", "FP32", rate)]
    return model([node], inputs, [value("y", "FP32", signal)])


def marked() -> bytes:
    """BYTES [rows, any] with one `mark` [1, 1] behind each row."""
    nodes = [
        helper.make_node("Shape", ["text"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["mark", "shape"], ["marks"]),
        helper.make_node("Concat", ["text", "marks"], ["y"], axis=1),
    ]
    inputs = [value("text", "BYTES", ["N", "words"]), value("mark", "BYTES", [1, 1])]
    return model(nodes, inputs, [value("y", "BYTES", ["N", "more"])], [constant("one", np.array([1], np.int64))])


def turned() -> bytes:
    """INT64 [height, width, rows] to `y` [rows, width, height] and, of each row, the `greatest` [1, rows]."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["y"], perm=[2, 1, 0]),
        helper.make_node("ReduceMax", ["x", "axes"], ["tall"], keepdims=0),
        helper.make_node("Unsqueeze", ["tall", "zero"], ["greatest"]),
    ]
    outputs = [value("y", "INT64", ["batch_size", "width", "height"]), value("greatest", "INT64", [1, "batch_size"])]
    constants = [constant("axes", np.array([0, 1], np.int64)), constant("zero", np.array([0], np.int64))]
    return model(nodes, [value("x", "INT64", ["height", "width", "batch_size"])], outputs, constants)


def nameless_state() -> bytes:
    """As `recurrent`, where the file names the dimensions of the inputs only."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["state"], ["new_state"])]
    inputs = [value("x", "FP32", ["N", 3]), value("state", "FP32", [2, "N", 3])]
    return model(nodes, inputs, [value("y", "FP32", [None, 3]), value("new_state", "FP32", [2, None, 3])])


def centred() -> bytes:
    """`y = x - mean(x)`, over all rows: each row's answer depends on its company."""
    nodes = [helper.make_node("ReduceMean", ["x", "axis"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["y"])]
    shape: Extents = ["N", 2]
    axis = constant("axis", np.array([0], np.int64))
    return model(nodes, [value("x", "FP32", shape)], [value("y", "FP32", shape)], [axis])


def twice() -> bytes:
    """Each row twice, one behind the other: FP32 [rows, length] to [rows, 2 length]."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    return model([node], [value("x", "FP32", ["N", "length"])], [value("y", "FP32", ["N", "longer"])])


def dynamically_quantized() -> bytes:
    """The input in steps of a 255th of the range that all rows together have."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["quantized", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["y"]),
    ]
    shape: Extents = ["N", 2]
    return model(nodes, [value("x", "FP32", shape)], [value("y", "FP32", shape)])


def products() -> bytes:
    """`y = x x'`, FP32 [rows, 2] to [rows, rows]: as many rows as there should be, but none for itself."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    return model(nodes, [value("x", "FP32", ["N", 2])], [value("y", "FP32", ["N", "N"])])


def random_numbers() -> bytes:
    """`y = x + noise`: other answers to the same values each time."""
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["y"])]
    shape: Extents = ["N", 2]
    return model(nodes, [value("x", "FP32", shape)], [value("y", "FP32", shape)])


def only_large_integers() -> bytes:
    """`y[i] = table[x[i] - 1000]`: refuses whatever is made up."""
    nodes = [
        helper.make_node("Sub", ["x", "offset"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["y"], axis=0),
    ]
    constants = [constant("offset", np.int64(1000)), constant("table", np.arange(4, dtype=np.float32))]
    return model(nodes, [value("x", "INT64", ["N"])], [value("y", "FP32", ["N"])], constants)


def encoder(*, heeds_mask: bool = True) -> bytes:
    """Tokens INT64 and a FP32 mask, both [rows, length].

    `hidden` [rows, length] is ten times the tokens, `mean` [rows] its mean. Without heed to the mask, padding counts.
    """
    nodes: list[Any] = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "ten"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["mask", "nothing"], ["zeros"]),
        helper.make_node("Add", ["mask" if heeds_mask else "zeros", "none" if heeds_mask else "one"], ["weights"]),
        helper.make_node("ReduceSum", ["weights", "axis"], ["length"], keepdims=0),
        helper.make_node("Div", ["sum", "length"], ["mean"]),
    ]
    shape: Extents = ["batch", "sequence"]
    constants = [
        constant("ten", np.float32(10)),
        constant("one", np.float32(1)),
        constant("none", np.float32(0)),
        constant("nothing", np.float32(0)),
        constant("axis", np.array([1], np.int64)),
    ]
    return model(
        nodes,
        [value("tokens", "INT64", shape), value("mask", "FP32", shape)],
        [value("mean", "FP32", ["batch"]), value("hidden", "FP32", shape)],
        constants,
    )


PADDED_ENCODER = """
[padding]
lengths = [2, 4, 8]
mask = "mask"
outputs = { hidden = 1 }

[padding.inputs.tokens]
axis = 1
value = 7
"""
