"""What only a GPU can show. `docs/gpu.md` says how to run these and what else to look at."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gateway.errors import StartupError
from gateway.runtime.cuda import CUDA_PROVIDER, TENSORRT_PROVIDER, CudaOptions, GraphRunner
from gateway.runtime.manifest import BatchingConfig, ModelConfig, RuntimeConfig
from gateway.runtime.session import OnnxSession, choose_device
from gateway.types import Array
from tests.support import onnx_models

PROVIDERS = onnxruntime.get_available_providers()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA_PROVIDER not in PROVIDERS, reason=f"this ONNX Runtime has no {CUDA_PROVIDER}"),
]

NUMBERS = [datatype for datatype in onnx_models.ONNX_TYPES if datatype != "BYTES"]


def session(folder: Path, content: bytes, options: CudaOptions | None = None, **runtime: Any) -> OnnxSession:
    """On the first CUDA device."""
    path = folder / "model" / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    limits = BatchingConfig(max_batch_rows=8, max_request_rows=8)
    config = ModelConfig(batching=limits, runtime=RuntimeConfig(**runtime))
    return OnnxSession(path, choose_device("cuda"), config=config, cuda=options or CudaOptions())


def rows(count: int, columns: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)}


@pytest.mark.parametrize("datatype", NUMBERS)
def test_every_datatype_comes_back_as_it_went(tmp_path: Path, datatype: str) -> None:
    loaded = session(tmp_path, onnx_models.identity(datatype))
    assert loaded.bound is not None
    for count in (0, 1, 5, 5):
        x = np.arange(count * 2).reshape(count, 2).astype(onnx_models.dtype_of(datatype))
        (y,) = loaded.run({"x": x})
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)
    assert not loaded.bound.is_given_up


@pytest.mark.parametrize("runtime", [{}, {"io_binding": False}, {"cuda_graphs": True}])
def test_answers_are_those_of_the_cpu_and_each_callers_own(tmp_path: Path, runtime: dict[str, Any]) -> None:
    content = onnx_models.large(2**20)
    loaded = session(tmp_path, content, **runtime)
    columns = loaded.signature.inputs[0].shape[1]
    cpu = OnnxSession(tmp_path / "model" / "1" / "model.onnx", "cpu")
    for count in (1, 2, 4, 8):
        assert loaded.warm_up(count) is not None
    asked = [rows(1 + seed % 8, columns, seed) for seed in range(64)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(loaded.run, asked))
    for inputs, (answer,) in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, cpu.run(inputs)[0], rtol=1e-2, atol=1e-2)
    assert loaded.bound is None or not loaded.bound.is_given_up
    loaded.close()


def test_graphs_are_captured_in_the_warm_up(tmp_path: Path) -> None:
    loaded = session(tmp_path, onnx_models.affine(), cuda_graphs=True)
    assert isinstance(loaded.bound, GraphRunner)
    loaded.warm_up(1)
    loaded.warm_up(4)
    assert len(loaded.bound.graphs) == 2
    for value in (1.0, 2.0):
        x = np.full((4, 3), value, np.float32)
        assert loaded.run({"x": x})[0].tolist() == (2 * x + 1).tolist()
    assert not loaded.bound.is_given_up
    loaded.close()


def test_a_memory_limit_that_is_too_small_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"(?i)memory|allocat"):
        session(tmp_path, onnx_models.large(64 * 2**20), CudaOptions(memory_bytes=2**20))


@pytest.mark.skipif(TENSORRT_PROVIDER not in PROVIDERS, reason=f"this ONNX Runtime has no {TENSORRT_PROVIDER}")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_keeps_its_engines(tmp_path: Path, precision: str) -> None:
    content = onnx_models.large(2**20)
    options = CudaOptions(engine_cache=tmp_path / "engines")
    loaded = session(tmp_path, content, options, tensorrt=precision)
    inputs = rows(8, loaded.signature.inputs[0].shape[1])
    (answer,) = loaded.run(inputs)
    (expected,) = OnnxSession(tmp_path / "model" / "1" / "model.onnx", "cpu").run(inputs)
    np.testing.assert_allclose(answer, expected, rtol=5e-2, atol=0.5)
    assert list((tmp_path / "engines").rglob("*.engine")) != []
