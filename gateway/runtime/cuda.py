"""All that only a GPU makes true: provider options, page-locked memory, CUDA graphs, TensorRT.

No GPU has run this yet. Tested without one are the options as they are built, what is refused, and every line that is
not NVIDIA's: bindings and graphs run on the CPU's memory. `docs/gpu.md` says how to try the rest, and what to look at.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gateway.errors import StartupError
from gateway.runtime.binding import Binding, BoundRunner, DType, Place, Shape, Shapes
from gateway.runtime.manifest import BatchingConfig, RuntimeConfig
from gateway.types import Array, Signature

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
MAX_GRAPHS = 16
"""Captured shapes of one session: each keeps the memory of a whole run for itself."""
EAGER = "-1"
"""As `gpu_graph_id`: neither capture nor replay (onnxruntime_run_options_config_keys.h)."""
PORTABLE = 1
"""`cudaHostAllocPortable`: page-locked for every CUDA context (CUDA runtime API, memory management)."""


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What the settings say about the device."""

    device_id: int = 0
    memory_bytes: int | None = None
    """Most that the arena of one session may take; None is all there is."""
    engine_cache: Path | None = None
    """Where TensorRT keeps the engines that it built."""


def cuda_options(device: str, device_id: int, memory_bytes: int | None, engine_cache: Path) -> CudaOptions:
    """The settings, for models on `device`. Raises `StartupError` for those that need another one."""
    if device != "cuda":
        for name, is_set in {"device_id": device_id != 0, "device_memory_bytes": memory_bytes is not None}.items():
            if is_set:
                raise StartupError(f"{name} has no effect on models that run on {device}; leave it out")
    return CudaOptions(device_id, memory_bytes, engine_cache)


def refuse_unusable(config: RuntimeConfig, device: str, available: Collection[str]) -> None:
    """Raises `StartupError` naming the key of `model.toml` that cannot take effect on `device`."""
    for key, is_set in {"cuda_graphs": config.cuda_graphs, "tensorrt": config.tensorrt is not None}.items():
        if is_set and device != "cuda":
            raise StartupError(f"model.toml asks for runtime.{key}, which needs CUDA; models run on {device} here")
    if config.tensorrt is not None and TENSORRT_PROVIDER not in available:
        raise StartupError(
            f"model.toml asks for runtime.tensorrt, which needs {TENSORRT_PROVIDER}; this ONNX Runtime does not have "
            f"it (it has {', '.join(available)})"
        )


def provider_options(config: RuntimeConfig, options: CudaOptions) -> dict[str, str]:
    """Of the CUDA provider (ONNX Runtime's documentation, CUDA Execution Provider)."""
    chosen = {
        "device_id": str(options.device_id),
        # An exhaustive search takes up to a second for every new shape (ONNX Runtime issue 19838).
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling takes up to twice what is needed, which the limit then refuses to somebody else.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.memory_bytes is not None:
        chosen["gpu_mem_limit"] = str(options.memory_bytes)
    if config.cuda_graphs:
        chosen["enable_cuda_graph"] = "1"
    return chosen


def tensorrt_options(
    config: RuntimeConfig, options: CudaOptions, cache: Path, profile: dict[str, str]
) -> dict[str, str]:
    """Of the TensorRT provider (ONNX Runtime's documentation, TensorRT Execution Provider); engines go to `cache`."""
    return {
        "device_id": str(options.device_id),
        "trt_fp16_enable": "True" if config.tensorrt == "fp16" else "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
        **profile,
    }


def engine_profile(signature: Signature, batching: BatchingConfig) -> dict[str, str]:
    """The row counts that an engine is built for. Without, each new one would stop the traffic for a build.

    Raises `StartupError` if an input varies on another axis than the first.
    """
    varying = [spec for spec in signature.inputs if -1 in spec.shape]
    for spec in varying:
        if -1 in spec.shape[1:]:
            raise StartupError(
                f"model.toml asks for runtime.tensorrt, which needs inputs that vary on their first axis only; "
                f"{spec.name!r} is {list(spec.shape)}"
            )
    if not varying:
        return {}
    rows = {"min": 1, "opt": batching.rows_limit, "max": max(batching.rows_limit, batching.max_request_rows)}
    return {
        f"trt_profile_{name}_shapes": ",".join(
            f"{spec.name}:{'x'.join(map(str, (count, *spec.shape[1:])))}" for spec in varying
        )
        for name, count in rows.items()
    }


def engine_folder(options: CudaOptions, model: Path, runtime_version: str) -> Path:
    """Where the engines of one version are kept; made if it is not there.

    By version of ONNX Runtime, which does not notice that another one built an engine. Raises `StartupError` if it
    cannot be made.
    """
    if options.engine_cache is None:
        raise StartupError(
            "model.toml asks for runtime.tensorrt, and there is no folder for the engines that it builds"
        )
    folder = options.engine_cache / runtime_version / model.parent.parent.name / model.parent.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"model.toml asks for runtime.tensorrt, which cannot keep its engines: {error}") from error
    return folder


class PageLockedMemory:
    """Makes arrays that the device reads and writes directly, without a copy by the driver in between.

    CUDA's runtime knows its own page-locked memory by address and copies to and from it at full speed, whoever asks for
    the copy (CUDA runtime API, `cudaHostAlloc`). ONNX Runtime's Python interface does not offer its own.
    """

    def __init__(self, runtime: Any, device_id: int) -> None:
        """`runtime` is CUDA's runtime library."""
        self._runtime = runtime
        self._device_id = device_id

    def __call__(self, shape: Shape, dtype: DType) -> Array:
        """An uninitialised array. Raises `MemoryError` if the driver has none to give."""
        return np.asarray(_PageLocked(self._runtime, self._device_id, shape, dtype))


class _PageLocked:
    """The memory of one array, which keeps this alive."""

    def __init__(self, runtime: Any, device_id: int, shape: Shape, dtype: DType) -> None:
        self._runtime = runtime
        self._address = ctypes.c_void_p()
        size = max(1, math.prod(shape) * dtype.itemsize)
        # The thread may be new to CUDA: without a device it would make a context on the first one.
        status = runtime.cudaSetDevice(ctypes.c_int(device_id)) or runtime.cudaHostAlloc(
            ctypes.byref(self._address), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE)
        )
        if status != 0:
            raise MemoryError(f"cudaHostAlloc of {size} bytes: CUDA error {status}")
        self.__array_interface__ = {
            "version": 3,
            "data": (self._address.value, False),
            "typestr": dtype.str,
            "shape": shape,
        }

    def __del__(self) -> None:
        if self._address.value is not None:
            self._runtime.cudaFreeHost(self._address)


def cuda_place(ort: ModuleType, options: CudaOptions, *, keeps_outputs: bool) -> Place:
    """Where tensors are bound on a CUDA device. Raises `StartupError` if CUDA's runtime library is not there."""
    name = f"libcudart.so.{ort.cuda_version.split('.')[0]}"
    try:
        runtime = ctypes.CDLL(name)
    except OSError as error:
        raise StartupError(f"page-locked memory needs {name}: {error}") from error
    host = PageLockedMemory(runtime, options.device_id)
    return Place("cuda", options.device_id, host, is_apart=True, keeps_outputs=keeps_outputs)


class GraphRunner(BoundRunner):
    """Replays a run as one CUDA graph where its shapes were captured, and runs as usual where they were not.

    A graph repeats the kernels of one run on the addresses of that run, so each captured shape keeps a binding of its
    own. ONNX Runtime keeps graphs by thread and takes no runs side by side with them: all go through one thread.
    """

    def __init__(self, ort: ModuleType, session: Any, signature: Signature, place: Place) -> None:
        super().__init__(session, signature, place, _graph_options(ort, EAGER))
        self._ort = ort
        self.graphs: dict[Shapes, tuple[Binding, Any]] = {}
        """The binding of each captured shape, and the run options that name its graph."""
        self._thread = ThreadPoolExecutor(1, "cuda-graphs")

    def capture(self, inputs: dict[str, Array]) -> None:
        """Have the next run of these shapes captured, and replayed from then on."""
        shapes = self.shapes_of(inputs)
        if shapes is not None and shapes not in self.graphs and len(self.graphs) < MAX_GRAPHS:
            # 0 is ONNX Runtime's own.
            self.graphs[shapes] = self.bind(shapes), _graph_options(self._ort, str(len(self.graphs) + 1))

    def run(self, inputs: dict[str, Array]) -> Any:
        """As `BoundRunner.run`, in turn."""
        return self._thread.submit(super().run, inputs).result()

    def run_bound(self, shapes: Shapes, inputs: dict[str, Array]) -> list[Array]:
        """A replay, or as `BoundRunner.run_bound`."""
        if shapes not in self.graphs:
            return super().run_bound(shapes, inputs)
        binding, options = self.graphs[shapes]
        return binding.run(inputs, options)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _graph_options(ort: ModuleType, graph_id: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options
