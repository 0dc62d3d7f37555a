from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from gateway.errors import InferenceFailed, InvalidRequest, StartupError
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.runtime import binding
from gateway.runtime.binding import BoundRunner, Place
from gateway.runtime.manifest import ModelConfig, RuntimeConfig
from gateway.runtime.session import DATATYPE_OF_ONNX, OnnxSession
from gateway.types import Array, Signature, TensorSpec
from tests.support import onnx_models

NUMBERS = [datatype for datatype in onnx_models.ONNX_TYPES if datatype != "BYTES"]

PLACES = {
    "in host memory": Place(),
    "apart": Place(is_apart=True),
    "apart, outputs too": Place(is_apart=True, keeps_outputs=True),
}
"""The CPU's memory used as if it were the host's, and as if it were a device's."""

Bind = Callable[[bytes], BoundRunner]


@pytest.fixture(params=list(PLACES))
def bind(request: pytest.FixtureRequest) -> Bind:
    """A runner of the model, in one of the places."""
    return lambda content: bound(content, PLACES[request.param])


def bound(content: bytes, place: Place) -> BoundRunner:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    specs = [
        tuple(TensorSpec(node.name, DATATYPE_OF_ONNX[node.type], (-1,)) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    ]
    return BoundRunner(session, Signature(*specs), place)


def plain(runner: BoundRunner, inputs: dict[str, Array]) -> list[Array]:
    """The same run without a binding."""
    outputs: list[Array] = runner.session.run(None, inputs)
    return outputs


def assert_same(ours: Any, expected: list[Array]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


class TestEqualsAPlainRun:
    @pytest.mark.parametrize("datatype", NUMBERS)
    @settings(
        max_examples=15,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
        deadline=None,
    )
    @given(data=st.data())
    def test_for_every_datatype_and_shape(self, bind: Bind, datatype: str, data: st.DataObject) -> None:
        dimensions = data.draw(st.integers(0, 4))
        runner = bind(onnx_models.identity(datatype, [f"d{axis}" for axis in range(dimensions)]))
        for _ in range(3):
            shape = data.draw(st.tuples(*[st.integers(0, 5)] * dimensions))
            x = data.draw(arrays.arrays(NUMPY_DTYPES[datatype], shape))
            assert_same(runner.run({"x": x}), plain(runner, {"x": x}))
        assert not runner.is_given_up

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(rows=st.lists(st.integers(0, 40), min_size=1, max_size=12))
    def test_for_any_sequence_of_batches(self, bind: Bind, rows: list[int]) -> None:
        runner = bind(onnx_models.classifier())
        for seed, count in enumerate(rows):
            x = np.random.default_rng(seed).normal(size=(count, 1)).astype(np.float32)
            assert_same(runner.run({"x": x}), plain(runner, {"x": x}))
        assert not runner.is_given_up

    @pytest.mark.parametrize(
        "x", [np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2], np.asfortranarray(np.ones((2, 3), np.float32))]
    )
    def test_for_arrays_that_do_not_lie_in_rows(self, bind: Bind, x: Array) -> None:
        runner = bind(onnx_models.affine())
        assert_same(runner.run({"x": x}), plain(runner, {"x": x}))
        assert not runner.is_given_up

    def test_for_several_inputs_in_any_order(self, bind: Bind) -> None:
        runner = bind(onnx_models.pair())
        inputs: dict[str, Array] = {"b": np.array([1, 2], np.int64), "a": np.ones((2, 2), np.float32)}
        assert_same(runner.run(inputs), plain(runner, inputs))
        assert not runner.is_given_up

    @pytest.mark.parametrize("rows", [1, 3])
    def test_for_outputs_whose_shape_depends_on_the_values(self, bind: Bind, rows: int) -> None:
        runner = bind(onnx_models.positions())
        assert runner.unplaced == ["y"]
        for x in (np.ones((rows, 2), np.float32), np.zeros((rows, 2), np.float32), np.eye(rows, 2, dtype=np.float32)):
            assert_same(runner.run({"x": x}), plain(runner, {"x": x}))
        assert not runner.is_given_up

    @pytest.mark.parametrize("rows", ["n", None])
    @pytest.mark.parametrize("name", ["x", "constant", "folded"])
    def test_for_outputs_that_no_node_computes(self, bind: Bind, name: str, rows: str | None) -> None:
        """ONNX Runtime writes an input or a constant nowhere, but gives out the tensor itself."""
        nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["constant"], ["folded"])]
        shape = [rows, 2]
        graph = helper.make_graph(
            nodes,
            "test",
            [onnx_models.value("x", "FP32", shape)],
            [onnx_models.value("y", "FP32", shape), onnx_models.value(name, "FP32", shape if name == "x" else [1, 2])],
            [onnx_models.constant("constant", np.array([[7, 8]], np.float32))],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        runner = bind(proto.SerializeToString())
        kept = []
        for value in (1.0, 2.0, 3.0):
            x = np.full((2, 2), value, np.float32)
            kept.append((runner.run({"x": x}), [copy.copy() for copy in plain(runner, {"x": x})]))
        for ours, expected in kept:
            assert_same(ours, expected)
        assert not runner.is_given_up

    def test_for_strings_among_the_outputs(self, bind: Bind) -> None:
        nodes = [
            helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING),
            helper.make_node("Neg", ["x"], ["number"]),
        ]
        outputs = [onnx_models.value("text", "BYTES", ["n"]), onnx_models.value("number", "INT64", ["n"])]
        runner = bind(onnx_models.model(nodes, [onnx_models.value("x", "INT64", ["n"])], outputs))
        for x in (np.array([1, 2]), np.array([30, 40]), np.array([5])):
            text, number = runner.run({"x": x})
            assert text.tolist() == [str(value) for value in x]
            assert number.tolist() == (-x).tolist()
        assert not runner.is_given_up


class TestAnswers:
    def test_are_not_written_to_by_later_runs(self, bind: Bind) -> None:
        runner = bind(onnx_models.classifier())
        kept = [(x, runner.run({"x": x})) for x in (np.full((3, 1), value, np.float32) for value in (-2, 0.5, 4))]
        for x, answer in kept:
            assert_same(answer, plain(runner, {"x": x}))

    def test_that_the_run_allocated_are_not_written_to_either(self, bind: Bind) -> None:
        runner = bind(onnx_models.total())
        kept = [(x, runner.run({"x": x})) for x in (np.full((2, 2), value, np.float32) for value in (1, 2, 3))]
        for x, answer in kept:
            assert_same(answer, plain(runner, {"x": x}))

    def test_may_be_changed_by_whoever_gets_them(self, bind: Bind) -> None:
        runner = bind(onnx_models.affine())
        x = np.ones((2, 3), np.float32)
        (answer,) = runner.run({"x": x})
        answer[:] = 100
        assert_same(runner.run({"x": x}), plain(runner, {"x": x}))

    def test_of_runs_side_by_side_are_each_ones_own(self, bind: Bind) -> None:
        runner = bind(onnx_models.busy())

        def ask(turns: int) -> bool:
            answers = [
                (value, runner.run({"turns": np.full((rows, 1), value, np.int64)})) for rows, value in cases(turns)
            ]
            return all((answer == value).all() for value, (answer,) in answers)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(ask, range(64)))
        assert not runner.is_given_up

    def test_outlive_the_session(self, bind: Bind) -> None:
        runner = bind(onnx_models.total())
        (answer,) = runner.run({"x": np.ones((2, 2), np.float32)})
        del runner
        assert answer.tolist() == [[2, 2]]


def cases(seed: int) -> list[tuple[int, int]]:
    """Rows and value of a few runs; the same rows often enough that bindings are shared."""
    return [(1 + (seed + turn) % 3, 1 + (seed * 7 + turn) % 20) for turn in range(6)]


class TestBindings:
    def test_are_used_again(self) -> None:
        runner = bound(onnx_models.affine(), Place())
        for _ in range(5):
            runner.run({"x": np.ones((2, 3), np.float32)})
        assert [len(bindings) for bindings in runner.idle.values()] == [1]

    def test_of_shapes_that_come_no_more_are_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binding, "IDLE_BYTES", 3 * (binding.BINDING_BYTES + 2 * 3 * 4 * 10))
        runner = bound(onnx_models.affine(), Place())
        for rows in (1, 2, 3, 1, 4, 5):
            runner.run({"x": np.ones((rows, 3), np.float32)})
        assert list(runner.idle) == [((1, 3),), ((4, 3),), ((5, 3),)]
        assert runner.idle_bytes == sum(kept.size_bytes for (kept,) in runner.idle.values())

    def test_of_the_shape_used_last_is_kept_however_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(binding, "IDLE_BYTES", 1)
        runner = bound(onnx_models.affine(), Place())
        for rows in (1, 2, 2):
            runner.run({"x": np.ones((rows, 3), np.float32)})
        assert list(runner.idle) == [((2, 3),)]

    def test_are_given_up_for_a_model_that_breaks_its_word(self, bind: Bind, caplog: pytest.LogCaptureFixture) -> None:
        runner = bind(breaks_its_word())
        assert runner.unplaced == []
        x = np.array([[1, 2], [3, 4]], np.float32)
        with caplog.at_level(logging.WARNING, "gateway.runtime.binding"):
            for _ in range(3):
                assert_same(runner.run({"x": x}), plain(runner, {"x": x}))
        assert len(caplog.records) == 1
        assert "without IoBinding from now on" in caplog.text
        assert runner.idle == {}


def breaks_its_word() -> bytes:
    """One row for all, under a signature that promises one for each by the same name."""
    proto = onnx.load_from_string(onnx_models.total())
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return bytes(proto.SerializeToString())


class TestRefusals:
    @pytest.mark.parametrize(
        ("inputs", "error"),
        [
            ({"index": np.array([9], np.int64)}, InvalidRequest),
            ({"index": np.array([1], np.int32)}, InvalidRequest),
            ({"index": np.array([1], ">i8")}, InvalidRequest),
            ({"index": np.array(["1"], object)}, InvalidRequest),
            ({"index": np.array([[1]], np.int64)}, InvalidRequest),
            ({"index": np.array([1], np.int64), "more": np.array([1], np.int64)}, InvalidRequest),
            ({"other": np.array([1], np.int64)}, InferenceFailed),
            ({}, InferenceFailed),
        ],
    )
    def test_are_those_of_a_plain_run(self, tmp_path: Path, inputs: dict[str, Array], error: type[Exception]) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.lookup())
        plain_session = OnnxSession(path, "cpu")
        session = OnnxSession(path, "cpu", config=ModelConfig(runtime=RuntimeConfig(io_binding=True)))
        messages = []
        for one in (plain_session, session):
            with pytest.raises(error) as caught:
                one.run(inputs)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
        # And what is right is still answered.
        assert session.run({"index": np.array([3], np.int64)})[0].tolist() == [[6, 7]]
        assert session.bound is not None
        assert not session.bound.is_given_up

    def test_a_model_that_takes_strings_cannot_be_bound(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.identity("BYTES"))
        with pytest.raises(
            StartupError, match=r"model\.onnx: model\.toml asks for runtime\.io_binding.*'x' holds strings"
        ):
            OnnxSession(path, "cpu", config=ModelConfig(runtime=RuntimeConfig(io_binding=True)))


def test_a_session_binds_on_the_cpu_only_if_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.affine())
    assert OnnxSession(path, "cpu").bound is None
    session = OnnxSession(path, "cpu", config=ModelConfig(runtime=RuntimeConfig(io_binding=True)))
    assert session.bound is not None
    assert session.run({"x": np.ones((1, 3), np.float32)})[0].tolist() == [[3, 3, 3]]
    assert session.warm_up(8) is not None
    session.close()
