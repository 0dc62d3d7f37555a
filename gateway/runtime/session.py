"""One ONNX model in ONNX Runtime. Nothing outside `runtime/` imports ONNX Runtime."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np

from gateway.errors import InferenceFailed, InvalidRequest, StartupError
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.runtime.arena import SpikeWatch
from gateway.runtime.manifest import MANIFEST_FILE
from gateway.runtime.sealed import SealedFile
from gateway.runtime.trust import ModelContent
from gateway.types import Array, Signature, TensorSpec

Device: TypeAlias = Literal["cpu", "cuda"]

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Searching convolution algorithms exhaustively takes up to a second for every new shape (ONNX Runtime issue 19838).
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}

DATATYPE_OF_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": BYTES,
}


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime, or `StartupError` saying which extra brings it."""
    # Its Linux wheels report their use to their maker since 1.29, unless told otherwise before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime  # noqa: PLC0415 -- neither flavour is in the base installation
    except ImportError as error:
        raise StartupError(
            "ONNX Runtime is not installed: `pip install 'model-gateway[cpu]'`, "
            "or `pip install 'model-gateway[gpu]'` for CUDA (the two exclude each other)"
        ) from error
    onnxruntime.set_default_logger_severity(3)
    return onnxruntime  # type: ignore[no-any-return]


def choose_device(configured: Literal["auto", "cpu", "cuda"]) -> Device:
    """`auto` takes CUDA where ONNX Runtime offers it. Raises `StartupError` for `cuda` where it does not."""
    ort = import_onnxruntime()
    available = ort.get_available_providers()
    if configured == "auto":
        configured = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    if configured == "cuda" and PROVIDERS["cuda"] in available:
        # The extra brings CUDA as wheels, where the dynamic linker does not look by itself.
        ort.preload_dlls()
    if PROVIDERS[configured] not in available:
        raise StartupError(
            f"device {configured} needs {PROVIDERS[configured]}, which this ONNX Runtime does not have "
            f"(it has {', '.join(available)}): `pip install 'model-gateway[gpu]'`, or set device to cpu"
        )
    return configured


class OnnxSession:
    """A loaded model: its signature, and `run`. Thread-safe; `run` releases the GIL."""

    def __init__(self, path: Path, device: Device, threads: int = 1, content: ModelContent | None = None) -> None:
        """Load `path`, or the `content` that was read from it, to run with `threads` threads.

        Raises `StartupError` if the file is no model or `device` cannot run it.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        # One thread launches CUDA kernels; more only contend (ONNX Runtime issue 20494).
        options.intra_op_num_threads = 1 if device == "cuda" else threads
        options.inter_op_num_threads = 1
        # Spinning threads burn whole cores while idle, once for every loaded model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = (PROVIDERS[device], CUDA_OPTIONS) if device == "cuda" else PROVIDERS[device]
        source = str(path if content is None else content.model.path)
        if content is not None:
            _offer_external(options, path.parent, content.external)
        try:
            self._session = ort.InferenceSession(source, options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = _first_line(error).replace(source, str(path))
            raise StartupError(f"{path}: ONNX Runtime cannot load it: {reason}") from error
        # Without this a CUDA failure would quietly go on, at a tenth of the speed, on the CPU.
        self._session.disable_fallback()
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise StartupError(f"{path}: runs on {self._session.get_providers()[0]}, not on {device} as configured")
        self.signature = Signature(
            inputs=tuple(_spec(path, node) for node in self._session.get_inputs()),
            outputs=tuple(_spec(path, node) for node in self._session.get_outputs()),
        )
        self._output_names = [spec.name for spec in self.signature.outputs]
        self._watch = SpikeWatch()
        self._shrinking = ort.RunOptions()
        if device == "cpu":
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._invalid_input: tuple[type[Exception], ...] = (ort.capi.onnxruntime_pybind11_state.InvalidArgument,)

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """All outputs, in the order of the signature.

        Raises `InvalidRequest` where ONNX Runtime blames the values, `InferenceFailed` for the rest.
        """
        size = sum([array.nbytes for array in inputs.values()])
        options = self._shrinking if self._watch.is_due(size) else None
        try:
            outputs: Sequence[Array] = self._session.run(self._output_names, inputs, options)
        except self._invalid_input as error:
            raise InvalidRequest(f"the model refuses these values: {_first_line(error)}") from error
        except Exception as error:  # as above
            raise InferenceFailed(f"the model failed: {_first_line(error)}") from error
        return [np.asarray(output) for output in outputs]

    def close(self) -> None:
        """Free the model's memory at once. Nothing may run afterwards."""
        del self._session

    def warm_up(self, rows: int = 1) -> float | None:
        """Run `rows` rows of zeros, so that the first client does not pay for allocation.

        Seconds of the run; None if the model refuses zeros, which says nothing about real values.
        """
        inputs = {spec.name: _zeros(spec, rows) for spec in self.signature.inputs}
        self._watch.warmed(sum([array.nbytes for array in inputs.values()]))
        started = time.perf_counter()
        try:
            self.run(inputs)
        except (InvalidRequest, InferenceFailed):
            return None
        return time.perf_counter() - started


def _offer_external(options: Any, folder: Path, external: dict[str, SealedFile] | None) -> None:
    """Say where a model that was read from `folder` finds its external data."""
    # What is not among the verified files must not be found at all: there is nothing below a file.
    place = folder if external is None else folder / MANIFEST_FILE
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(place))
    if external:
        buffers = [file.buffer for file in external.values()]
        sizes = [file.size for file in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), buffers, sizes)


def _zeros(spec: TensorSpec, rows: int) -> Array:
    """`rows` on a variable first axis, 1 on the other variable ones."""
    shape = tuple((rows if axis == 0 else 1) if extent == -1 else extent for axis, extent in enumerate(spec.shape))
    return np.full(shape, "" if spec.datatype == BYTES else 0, NUMPY_DTYPES[spec.datatype])


def _spec(path: Path, node: object) -> TensorSpec:
    name, onnx_type, shape = node.name, node.type, node.shape  # type: ignore[attr-defined]
    if onnx_type not in DATATYPE_OF_ONNX:
        raise StartupError(f"{path}: {name!r} is a {onnx_type}; no tensor of the protocol becomes one")
    extents = tuple(extent if isinstance(extent, int) and extent >= 0 else -1 for extent in shape)
    return TensorSpec(name, DATATYPE_OF_ONNX[onnx_type], extents)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
