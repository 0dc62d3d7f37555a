"""What is not so is found out while a version is loaded, and the log says what."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from gateway.errors import InferenceFailed, StartupError
from gateway.runtime import proof
from gateway.runtime.batch_axes import candidates
from gateway.runtime.layout import Layout
from gateway.runtime.manifest import ModelConfig
from gateway.runtime.proof import BUDGET_SECONDS, choose_layout, prove_rows
from gateway.runtime.session import OnnxSession
from gateway.types import Array, ModelKey
from tests.support import onnx_models, strange_models

Choose = Callable[..., Layout]


class Counting:
    """Counts the runs of a session."""

    def __init__(self, session: OnnxSession) -> None:
        self.session = session
        self.runs = 0

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        self.runs += 1
        return self.session.run_quietly(inputs)


def session_of(folder: Path, content: bytes) -> OnnxSession:
    (folder / "model.onnx").write_bytes(content)
    return OnnxSession(folder / "model.onnx", "cpu")


@pytest.fixture
def choose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Choose:
    caplog.set_level(logging.INFO)

    def choose(content: bytes, toml: str = "") -> Layout:
        session = session_of(tmp_path, content)
        config = ModelConfig.model_validate(tomllib.loads(toml))
        return choose_layout(session.run_quietly, session.graph, config, ModelKey("m", "1"))

    return choose


def axes(layout: Layout) -> dict[str, int | None]:
    return {spec.name: spec.axis for spec in layout.signature.inputs + layout.signature.outputs}


def test_the_common_model_is_batched_without_a_word(choose: Choose, caplog: pytest.LogCaptureFixture) -> None:
    layout = choose(onnx_models.affine())
    assert (layout.shares_runs, layout.is_simple) == (True, True)
    assert caplog.messages == []


def test_axes_that_are_not_the_first_are_said_in_the_log(choose: Choose, caplog: pytest.LogCaptureFixture) -> None:
    assert axes(choose(strange_models.recurrent())) == {"x": 0, "state": 1, "y": 0, "new_state": 1}
    assert caplog.messages == [
        "m/1: rows share runs: 'x' has them on axis 0, 'state' has them on axis 1; outputs: 'y' on axis 0, "
        "'new_state' on axis 1"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (strange_models.centred(), r"output 'y' of 2 rows together is not that of each alone: [\d.]+ apart, "),
        (strange_models.products(), r"output 'y' of 2 rows together is not that of each alone: shape \[1, 2\], not"),
        (onnx_models.total(), r"2 rows do not give as many in every output: 'y' \(rows on axis 0\) \[1, 2\]"),
        (onnx_models.positions(), r"1 rows do not give as many in every output: 'y' \(rows on axis 0\) \[2, 2\]"),
    ],
)
def test_a_model_that_fails_runs_alone_and_the_log_says_why(
    content: bytes, reason: str, choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    assert not choose(content).shares_runs
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert caplog.messages[0].startswith("m/1: each request runs alone: ")
    assert re.search(reason, caplog.messages[0])


def test_rows_that_look_at_each_other_are_still_rows(choose: Choose) -> None:
    layout = choose(strange_models.centred())
    assert layout.signature.is_batchable
    assert not choose(onnx_models.total()).signature.is_batchable


@pytest.mark.parametrize("content", [strange_models.only_large_integers(), strange_models.random_numbers()])
def test_a_common_model_that_cannot_be_tried_is_taken_at_its_word(
    content: bytes, choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose(content).shares_runs
    assert caplog.messages[0].startswith("m/1: rows share runs unproved: ")


def refuse(_inputs: dict[str, Array]) -> list[Array]:
    raise InferenceFailed("not today")


def test_an_unusual_model_that_cannot_be_tried_runs_alone_unless_its_axes_are_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = session_of(tmp_path, strange_models.running_total()).graph
    layout = choose_layout(refuse, graph, ModelConfig(), ModelKey("m", "1"))
    assert not layout.signature.is_batchable
    assert caplog.messages == ["m/1: each request runs alone: not today"]
    config = ModelConfig.model_validate({"batching": {"axes": {"x": 1, "y": 1}}})
    assert choose_layout(refuse, graph, config, ModelKey("m", "1")).shares_runs


def test_a_model_that_takes_one_row_only_runs_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = session_of(tmp_path, onnx_models.affine())

    def run(inputs: dict[str, Array]) -> list[Array]:
        return session.run(inputs) if len(inputs["x"]) == 1 else refuse(inputs)

    assert not choose_layout(run, session.graph, ModelConfig(), ModelKey("m", "1")).shares_runs
    assert caplog.messages == ["m/1: each request runs alone: 2 rows together fail, each alone does not: not today"]


def noisy(session: OnnxSession, noise: float) -> proof.Run:
    """Whose rows are that much off in company, relative to the greatest of the output."""

    def run(inputs: dict[str, Array]) -> list[Array]:
        (output,) = session.run(inputs)
        return [output if len(output) == 1 else output * np.float32(1 + noise)]

    return run


@pytest.mark.parametrize(
    ("noise", "tolerance", "is_shared"), [(1e-4, 1e-3, True), (1e-2, 1e-3, False), (1e-2, 0.1, True)]
)
def test_the_tolerance_decides_what_is_alike(noise: float, tolerance: float, is_shared: bool, tmp_path: Path) -> None:
    session = session_of(tmp_path, onnx_models.affine())
    config = ModelConfig.model_validate({"batching": {"tolerance": tolerance}})
    layout = choose_layout(noisy(session, noise), session.graph, config, ModelKey("m", "1"))
    assert layout.shares_runs is is_shared


@pytest.mark.parametrize("toml", ["[batching]\nbatchable = false\n", "[batching]\nmax_batch_rows = 1\n"])
def test_nothing_is_run_for_a_model_that_runs_alone_anyway(toml: str, tmp_path: Path) -> None:
    counting = Counting(session_of(tmp_path, onnx_models.affine()))
    config = ModelConfig.model_validate(tomllib.loads(toml))
    layout = choose_layout(counting.run, counting.session.graph, config, ModelKey("m", "1"))
    assert (layout.shares_runs, counting.runs) == (False, 0)
    # Rows are counted where a request may have several of them.
    assert layout.signature.is_batchable is ("max_batch_rows" in toml)


def test_a_slow_model_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(session_of(tmp_path, onnx_models.affine()))
    (signature,) = candidates(counting.session.graph)
    prove_rows(counting.run, Layout(signature), 1e-3)
    thorough, counting.runs = counting.runs, 0
    monkeypatch.setattr(proof, "BUDGET_SECONDS", -BUDGET_SECONDS)
    assert prove_rows(counting.run, Layout(signature), 1e-3).verdict == "proved"
    assert counting.runs == thorough // proof.SEEDS == 6


def test_padding_that_changes_the_answers_is_not_done_and_the_log_says_why(
    choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    layout = choose(strange_models.encoder(heeds_mask=False), strange_models.PADDED_ENCODER)
    assert layout.shares_runs
    assert layout.padding is not None
    assert layout.padding.lengths == ()
    assert any(
        message.startswith("m/1: sequences are not padded: output 'mean' of 2 rows") for message in caplog.messages
    )


def test_a_mask_that_clients_do_not_send_is_made_for_a_model_that_runs_alone_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = session_of(tmp_path, strange_models.encoder())
    config = ModelConfig.model_validate(tomllib.loads(strange_models.PADDED_ENCODER))

    def mixing(inputs: dict[str, Array]) -> list[Array]:
        return [output + len(output) for output in session.run(inputs)]

    layout = choose_layout(mixing, session.graph, config, ModelKey("m", "1"))
    assert not layout.shares_runs
    assert [spec.name for spec in layout.signature.inputs] == ["tokens"]
    inputs = layout.gather([proof.MadeUp({"tokens": np.ones((3, 5), np.int64)}, 1)], 1)
    assert inputs is not None
    assert inputs["mask"].tolist() == [[1.0] * 5] * 3


@pytest.mark.parametrize(
    ("content", "toml", "message"),
    [
        ("affine", "[batching.axes]\nz = 0\ny = 0\n", "batching.axes: no tensor 'z'; the model has x, y"),
        ("affine", "[batching.axes]\nx = 1\ny = 0\n", r"batching.axes.x: axis 1 of shape \[-1, 3\] is not variable"),
        ("affine", "[batching.axes]\nx = 2\ny = 0\n", r"batching.axes.x: axis 2 of shape \[-1, 3\] is not variable"),
        ("affine", "[batching.axes]\nx = 0\n", "batching.axes: output 'y' is missing"),
        ("affine", "[batching.axes]\ny = 0\n", "batching.axes: no input has rows; inputs: x"),
        ("fixed_rows", "[padding]\nlengths = [2]\ninputs = { x = { axis = 1 } }\n", "padding: the model has no rows"),
        ("row_sum", "[padding]\nlengths = [2]\ninputs = { z = { axis = 1 } }\n", "padding.inputs.z: no input 'z'"),
        ("affine", "[padding]\nlengths = [2]\ninputs = { x = { axis = 1 } }\n", "padding.inputs.x: axis 1 of shape"),
        ("row_sum", "[padding]\nlengths = [2]\ninputs = { x = { axis = 0 } }\n", "padding.inputs.x: axis 0 of shape"),
        (
            "row_sum",
            '[padding]\nlengths = [2]\ninputs = { x = { axis = 1, value = "a" } }\n',
            "padding.inputs.x: value 'a' is no FP32",
        ),
        (
            "row_sum",
            "[padding]\nlengths = [2]\ninputs = { x = { axis = 1 } }\noutputs = { y = 1 }\n",
            "padding.outputs.y: axis 1 of shape",
        ),
        (
            "row_sum",
            '[padding]\nlengths = [2]\nmask = "m"\ninputs = { x = { axis = 1 } }\n',
            "padding.mask: no input 'm'",
        ),
        (
            "pair",
            '[padding]\nlengths = [2]\nmask = "b"\ninputs = { a = { axis = 1 } }\n',
            "padding.inputs.a: axis 1 of shape",
        ),
    ],
)
def test_what_the_graph_contradicts_is_refused_by_name(content: str, toml: str, message: str, choose: Choose) -> None:
    with pytest.raises(StartupError, match=message):
        choose(getattr(onnx_models, content)(), toml)


@pytest.mark.parametrize(
    ("mask", "tokens", "message"),
    [
        (["batch"], {"axis": 1}, r"padding.mask: 'mask' is FP32 \[-1\]; expected numbers with two variable axes"),
        (["batch", "sequence"], {"axis": 1, "value": 1.5}, "padding.inputs.tokens: value 1.5 is no INT64"),
        (["batch", "sequence"], {"axis": 1, "value": 2**70}, "padding.inputs.tokens: value [0-9]+ is no INT64"),
    ],
)
def test_padding_that_does_not_fit_the_tensors_is_refused_by_name(
    mask: Any, tokens: dict[str, Any], message: str, choose: Choose, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Identity", ["tokens"], ["y"]),
        helper.make_node("Identity", ["mask"], ["z"]),
    ]
    shape = ["batch", "sequence"]
    inputs = [onnx_models.value("tokens", "INT64", shape), onnx_models.value("mask", "FP32", mask)]
    outputs = [onnx_models.value("y", "INT64", shape), onnx_models.value("z", "FP32", mask)]
    graph = session_of(tmp_path, onnx_models.model(nodes, inputs, outputs)).graph
    padding = {"lengths": [4], "inputs": {"tokens": tokens}, "mask": "mask"}
    config = ModelConfig.model_validate({"padding": padding})
    with pytest.raises(StartupError, match=message):
        choose_layout(refuse, graph, config, ModelKey("m", "1"))
