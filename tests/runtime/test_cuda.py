from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gateway.errors import StartupError
from gateway.runtime import cuda
from gateway.runtime.binding import Place
from gateway.runtime.cuda import (
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    CudaOptions,
    GraphRunner,
    PageLockedMemory,
    cuda_options,
    engine_folder,
    engine_profile,
    provider_options,
    refuse_unusable,
    tensorrt_options,
)
from gateway.runtime.execution import CPU_PROVIDER, choose_providers, choose_runner, graph_runner
from gateway.runtime.manifest import BatchingConfig, ModelConfig, RuntimeConfig
from gateway.runtime.session import OnnxSession
from gateway.types import Array, Signature, TensorSpec
from tests.support import onnx_models

ALL = (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER)
APART = Place(is_apart=True, keeps_outputs=True)

PLAIN = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


class Runtime:
    """An ONNX Runtime that has what it is told to have; its sessions are real ones."""

    __version__ = "1.2.3"
    cuda_version = "0.0"
    RunOptions = onnxruntime.RunOptions

    def __init__(self, *available: str) -> None:
        self.available = available

    def get_available_providers(self) -> list[str]:
        return list(self.available)


def signature(*shapes: tuple[int, ...]) -> Signature:
    return Signature(tuple(TensorSpec(f"x{index}", "FP32", shape) for index, shape in enumerate(shapes)), ())


def config(**runtime: Any) -> ModelConfig:
    return ModelConfig(runtime=RuntimeConfig(**runtime), batching=BatchingConfig(max_batch_rows=8, max_request_rows=32))


class TestProviders:
    @pytest.mark.parametrize(
        ("runtime", "options", "added"),
        [
            ({}, CudaOptions(), {}),
            ({}, CudaOptions(device_id=2), {"device_id": "2"}),
            ({}, CudaOptions(memory_bytes=3_000_000_000), {"gpu_mem_limit": "3000000000"}),
            ({"cuda_graphs": True}, CudaOptions(), {"enable_cuda_graph": "1"}),
        ],
    )
    def test_cuda_is_told(self, runtime: dict[str, Any], options: CudaOptions, added: dict[str, str]) -> None:
        assert provider_options(RuntimeConfig(**runtime), options) == PLAIN | added

    @pytest.mark.parametrize(("precision", "is_half"), [("fp32", "False"), ("fp16", "True")])
    def test_tensorrt_is_told(self, precision: Any, is_half: str) -> None:
        chosen = tensorrt_options(RuntimeConfig(tensorrt=precision), CudaOptions(1), Path("/data/engines"), {"a": "b"})
        assert chosen == {
            "device_id": "1",
            "trt_fp16_enable": is_half,
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "/data/engines",
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": "/data/engines",
            "a": "b",
        }

    def test_on_the_cpu_there_is_one(self) -> None:
        assert self.choose(config(), "cpu") == [(CPU_PROVIDER, {})]

    def test_on_cuda_what_it_cannot_run_is_not_for_the_cpu_to_take_over(self) -> None:
        assert self.choose(config(), "cuda") == [(CUDA_PROVIDER, PLAIN)]

    def test_tensorrt_comes_first_with_a_folder_for_the_version(self, tmp_path: Path) -> None:
        chosen = self.choose(config(tensorrt="fp16"), "cuda", CudaOptions(engine_cache=tmp_path / "engines"))
        assert [name for name, _ in chosen] == [TENSORRT_PROVIDER, CUDA_PROVIDER]
        folder = tmp_path / "engines" / "1.2.3" / "model" / "7"
        assert folder.is_dir()
        assert chosen[0][1]["trt_engine_cache_path"] == str(folder)
        assert chosen[0][1]["trt_profile_max_shapes"] == "x0:32x4"

    def choose(self, config: ModelConfig, device: str, options: CudaOptions = CudaOptions()) -> Any:  # noqa: B008
        runtime: Any = Runtime(*ALL)
        path = Path("/models/model/7/model.onnx")
        return choose_providers(runtime, path, device, config, options, lambda: signature((-1, 4)))


class TestEngineProfile:
    LIMITS = BatchingConfig(max_batch_rows=8, max_request_rows=32)

    def test_spans_from_one_row_to_the_largest_request(self) -> None:
        assert engine_profile(signature((-1, 4), (-1,), (3, 5)), self.LIMITS) == {
            "trt_profile_min_shapes": "x0:1x4,x1:1",
            "trt_profile_opt_shapes": "x0:8x4,x1:8",
            "trt_profile_max_shapes": "x0:32x4,x1:32",
        }

    def test_reaches_the_largest_batch_where_requests_are_smaller(self) -> None:
        limits = BatchingConfig(max_batch_rows=64, max_request_rows=1)
        assert engine_profile(signature((-1, 4)), limits)["trt_profile_max_shapes"] == "x0:64x4"

    def test_is_left_out_where_nothing_varies(self) -> None:
        assert engine_profile(signature((3, 5), ()), self.LIMITS) == {}

    def test_another_axis_that_varies_is_refused_by_name(self) -> None:
        with pytest.raises(StartupError, match=r"runtime\.tensorrt.*'x1' is \[-1, -1\]"):
            engine_profile(signature((-1, 4), (-1, -1)), self.LIMITS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("runtime", "message"),
        [
            ({"cuda_graphs": True}, "runtime.cuda_graphs, which needs CUDA; models run on cpu here"),
            ({"tensorrt": "fp32"}, "runtime.tensorrt, which needs CUDA; models run on cpu here"),
        ],
    )
    def test_what_needs_cuda_is_refused_on_the_cpu_by_its_key(
        self, tmp_path: Path, runtime: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_models.affine())
        with pytest.raises(StartupError) as caught:
            OnnxSession(path, "cpu", config=config(**runtime))
        assert str(caught.value) == f"{path}: model.toml asks for {message}"

    def test_a_missing_tensorrt_is_refused_naming_what_there_is(self) -> None:
        with pytest.raises(StartupError, match=f"runtime.tensorrt.*{TENSORRT_PROVIDER}.*it has {CUDA_PROVIDER}"):
            refuse_unusable(RuntimeConfig(tensorrt="fp32"), "cuda", (CUDA_PROVIDER, CPU_PROVIDER))

    def test_what_can_take_effect_passes(self) -> None:
        refuse_unusable(RuntimeConfig(), "cpu", (CPU_PROVIDER,))
        refuse_unusable(RuntimeConfig(cuda_graphs=True), "cuda", (CUDA_PROVIDER, CPU_PROVIDER))
        refuse_unusable(RuntimeConfig(tensorrt="fp16"), "cuda", ALL)

    def test_engines_without_a_folder_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(StartupError, match=r"runtime\.tensorrt.*no folder"):
            engine_folder(CudaOptions(), tmp_path / "m" / "1" / "model.onnx", "1")
        blocked = tmp_path / "file"
        blocked.touch()
        with pytest.raises(StartupError, match=r"runtime\.tensorrt.*cannot keep its engines"):
            engine_folder(CudaOptions(engine_cache=blocked), tmp_path / "m" / "1" / "model.onnx", "1")

    @pytest.mark.parametrize(
        ("device_id", "memory", "named"), [(1, None, "device_id"), (0, 2**30, "device_memory_bytes")]
    )
    def test_settings_for_a_device_that_is_not_used_are_refused(
        self, device_id: int, memory: int | None, named: str
    ) -> None:
        with pytest.raises(StartupError, match=f"^{named} has no effect on models that run on cpu"):
            cuda_options("cpu", device_id, memory, Path("engines"))
        assert cuda_options("cuda", device_id, memory, Path("engines")) == CudaOptions(
            device_id, memory, Path("engines")
        )

    def test_a_runtime_library_that_is_not_there_is_refused_by_name(self) -> None:
        runtime: Any = Runtime(*ALL)
        session: Any = None
        with pytest.raises(StartupError, match=r"libcudart\.so\.0"):
            choose_runner(runtime, session, signature((-1, 4)), "cuda", RuntimeConfig(), CudaOptions())

    @pytest.mark.parametrize("runtime", [{"io_binding": True}, {"cuda_graphs": True}])
    def test_strings_are_refused_where_bindings_are_asked_for(self, runtime: dict[str, Any]) -> None:
        ort: Any = Runtime(*ALL)
        strings = Signature((TensorSpec("words", "BYTES", (-1,)),), ())
        (key,) = runtime
        with pytest.raises(StartupError, match=rf"runtime\.{key}.*'words' holds strings"):
            choose_runner(ort, None, strings, "cuda", RuntimeConfig(**runtime), CudaOptions())
        assert choose_runner(ort, None, strings, "cuda", RuntimeConfig(), CudaOptions()) is None

    def test_graphs_are_refused_where_a_shape_depends_on_the_values(self) -> None:
        with pytest.raises(StartupError, match=r"runtime\.cuda_graphs.*'y'"):
            graphs(onnx_models.positions())

    def test_bindings_that_are_turned_off_are_off(self) -> None:
        ort: Any = Runtime(*ALL)
        off = RuntimeConfig(io_binding=False)
        assert choose_runner(ort, None, signature((-1, 4)), "cuda", off, CudaOptions()) is None


class Malloc:
    """Answers as CUDA's runtime library does, with memory from the C library."""

    def __init__(self, status: int = 0) -> None:
        self._c = ctypes.CDLL(None)
        self._c.malloc.restype = ctypes.c_void_p
        self.status = status
        self.devices: set[int] = set()
        self.held: set[int] = set()

    def cudaSetDevice(self, device: ctypes.c_int) -> int:
        self.devices.add(device.value)
        return 0

    def cudaHostAlloc(self, address: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        assert flags.value == 1
        if self.status == 0:
            taken = self._c.malloc(size)
            ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0] = taken
            self.held.add(taken)
        return self.status

    def cudaFreeHost(self, address: ctypes.c_void_p) -> int:
        assert address.value is not None
        self.held.remove(address.value)
        self._c.free(address)
        return 0


class TestPageLockedMemory:
    @pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (1000, 1000)])
    @pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.int64])
    def test_lives_as_long_as_any_array_over_it(self, shape: tuple[int, ...], dtype: type) -> None:
        runtime = Malloc()
        array = PageLockedMemory(runtime, 3)(shape, np.dtype(dtype))
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, np.dtype(dtype), True)
        array[...] = 1
        view = array.reshape(-1)[1:]
        del array
        gc.collect()
        assert len(runtime.held) == 1
        assert view.all()
        del view
        assert runtime.held == set()
        assert runtime.devices == {3}

    def test_that_is_not_to_be_had_is_an_error(self) -> None:
        with pytest.raises(MemoryError, match="cudaHostAlloc of 24 bytes: CUDA error 2"):
            PageLockedMemory(Malloc(2), 0)((2, 3), np.dtype(np.float32))

    def test_holds_inputs_and_outputs_until_the_binding_goes(self) -> None:
        runtime = Malloc()
        runner = graphs(onnx_models.affine(), Place(host=PageLockedMemory(runtime, 0), is_apart=True))
        x = np.ones((2, 3), np.float32)
        (answer,) = runner.run({"x": x})
        assert len(runtime.held) == 2
        runner.close()
        del runner
        gc.collect()
        assert runtime.held == set()
        assert answer.tolist() == [[3, 3, 3]] * 2


def graphs(content: bytes, place: Place = APART) -> GraphRunner:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    specs = [
        tuple(TensorSpec(node.name, "INT64" if "int64" in node.type else "FP32", (-1,)) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    ]
    return graph_runner(onnxruntime, session, Signature(*specs), place)


@pytest.fixture
def runner() -> Iterator[GraphRunner]:
    made = graphs(onnx_models.classifier())
    yield made
    made.close()


def rows(count: int, value: float = 1.0) -> dict[str, Array]:
    return {"x": np.full((count, 1), value, np.float32)}


class TestGraphs:
    """On the CPU nothing is captured; what is bound, told and run is as on CUDA."""

    def test_a_captured_shape_keeps_its_binding_and_another_has_none(self, runner: GraphRunner) -> None:
        runner.capture(rows(2))
        for value in (-3.0, 0.5):
            for count in (2, 5):
                label, probability = runner.run(rows(count, value))
                assert label.tolist() == [int(value > 0)] * count
                np.testing.assert_allclose(probability[:, 1], 1 / (1 + np.exp(-value)), rtol=1e-6)
        assert list(runner.idle) == [((5, 1),)]
        assert list(runner.graphs) == [((2, 1),)]

    def test_each_graph_has_a_number_of_its_own_and_other_runs_have_none(self, runner: GraphRunner) -> None:
        for count in (1, 2, 2, 4):
            runner.capture(rows(count))
        numbers = [options.get_run_config_entry("gpu_graph_id") for _, options in runner.graphs.values()]
        assert numbers == ["1", "2", "3"]
        assert runner.options.get_run_config_entry("gpu_graph_id") == "-1"

    def test_there_are_only_so_many(self, runner: GraphRunner) -> None:
        for count in range(1, cuda.MAX_GRAPHS + 10):
            runner.capture(rows(count))
        assert len(runner.graphs) == cuda.MAX_GRAPHS
        assert runner.run(rows(cuda.MAX_GRAPHS + 3))[0].tolist() == [1] * (cuda.MAX_GRAPHS + 3)

    def test_what_the_model_does_not_take_is_not_captured(self, runner: GraphRunner) -> None:
        runner.capture({"x": np.ones((1, 1), np.float64)})
        runner.capture({"y": np.ones((1, 1), np.float32)})
        assert runner.graphs == {}

    def test_answers_are_not_written_to_by_the_next_replay(self, runner: GraphRunner) -> None:
        runner.capture(rows(2))
        kept = [runner.run(rows(2, value)) for value in (-1.0, 1.0)]
        assert [label.tolist() for label, _ in kept] == [[0, 0], [1, 1]]

    def test_all_runs_go_through_one_thread(self, runner: GraphRunner) -> None:
        runner.capture(rows(3))
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda turn: runner.run(rows(1 + turn % 4, turn - 50.5)), range(100)))
        for turn, (label, _) in enumerate(answers):
            assert label.tolist() == [int(turn > 50)] * (1 + turn % 4)
        # A binding more than one would show that two runs were on at once.
        assert [len(bindings) for bindings in runner.idle.values()] == [1, 1, 1]
