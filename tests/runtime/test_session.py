from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gateway.errors import InvalidRequest, StartupError
from gateway.runtime.manifest import ModelConfig, RuntimeConfig
from gateway.runtime.session import OnnxSession, choose_device
from gateway.types import TensorSpec, string_array
from tests.support import onnx_models
from tests.support.onnx_models import Extents

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()

Sessions = Callable[[str], OnnxSession]


def load(tmp_path: Path, content: bytes) -> OnnxSession:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return OnnxSession(path, "cpu", threads=1)


@pytest.mark.parametrize("datatype", onnx_models.ONNX_TYPES)
def test_every_datatype_keeps_its_name_shape_and_values(tmp_path: Path, datatype: str) -> None:
    session = load(tmp_path, onnx_models.identity(datatype, ("batch", 2, None)))
    assert session.signature.inputs == (TensorSpec("x", datatype, (-1, 2, -1)),)
    assert session.signature.outputs == (TensorSpec("y", datatype, (-1, 2, -1)),)
    array = (
        string_array(["", "ä", "b", "c"], (1, 2, 2))
        if datatype == "BYTES"
        else np.array([[[0, 1], [1, 0]]]).astype(onnx_models.dtype_of(datatype))
    )
    (output,) = session.run({"x": array})
    assert output.dtype == array.dtype
    assert output.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("shape", "expected"), [((), ()), ((3,), (3,)), (("n",), (-1,)), ((None, 1), (-1, 1)), ((0, 2), (0, 2))]
)
def test_extents_without_a_number_are_variable(tmp_path: Path, shape: Extents, expected: tuple[int, ...]) -> None:
    assert load(tmp_path, onnx_models.identity("FP32", shape)).signature.inputs[0].shape == expected


def test_outputs_come_in_the_order_of_the_graph(sessions: Sessions) -> None:
    session = sessions("classifier")
    assert [spec.name for spec in session.signature.outputs] == ["label", "probability"]
    label, probability = session.run({"x": np.array([[2.0], [-2.0]], np.float32)})
    assert label.tolist() == [1, 0]
    assert probability.shape == (2, 2)


def test_values_that_the_model_cannot_take_are_the_callers_mistake(sessions: Sessions) -> None:
    with pytest.raises(InvalidRequest, match="the model refuses these values"):
        sessions("lookup").run({"index": np.array([7], np.int64)})


@pytest.mark.parametrize("content", [b"", b"no model", onnx_models.affine()[:-20], b"\x00" * 1000])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StartupError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        load(tmp_path, content)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"absent\.onnx"):
        OnnxSession(tmp_path / "absent.onnx", "cpu")


def test_a_type_that_the_protocol_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])
    with pytest.raises(StartupError, match=r"'y' is a tensor\(bfloat16\)"):
        load(tmp_path, onnx_models.model([cast], [onnx_models.value("x", "FP32", ["n"])], [y]))


@pytest.mark.skipif(HAS_CUDA, reason="this machine has what the test is about the lack of")
class TestWithoutCuda:
    def test_cuda_is_refused_naming_the_provider_and_the_remedy(self) -> None:
        with pytest.raises(StartupError, match=r"CUDAExecutionProvider.*model-gateway\[gpu\].*device to cpu"):
            choose_device("cuda")

    def test_auto_takes_the_cpu(self) -> None:
        assert choose_device("auto") == "cpu"

    def test_a_session_never_falls_back_to_the_cpu_by_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.affine())
        with (
            pytest.warns(UserWarning, match="CUDAExecutionProvider"),
            pytest.raises(StartupError, match="not on CUDAExecutionProvider as configured"),
        ):
            OnnxSession(path, "cuda")

    def test_what_was_asked_of_a_session_is_named_where_there_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.affine())
        with (
            pytest.warns(UserWarning, match="CUDAExecutionProvider"),
            pytest.raises(StartupError, match=r"as configured \(model\.toml asks for runtime\.cuda_graphs\)"),
        ):
            OnnxSession(path, "cuda", config=ModelConfig(runtime=RuntimeConfig(cuda_graphs=True)))


def test_cpu_is_always_there() -> None:
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("model", ["affine", "lookup", "logarithm", "fixed_rows", "row_sum", "busy"])
def test_warming_up_never_stops_a_start(model: str, sessions: Sessions) -> None:
    sessions(model).warm_up()


def test_warming_up_survives_a_model_that_refuses_zeros(tmp_path: Path) -> None:
    session = load(tmp_path, onnx_models.pairs())
    session.warm_up()
    assert session.run({"x": np.zeros(4, np.float32)})[0].shape == (2, 2)
