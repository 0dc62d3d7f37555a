"""One ONNX model in ONNX Runtime. Nothing outside `runtime/` imports ONNX Runtime."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np

from gateway.errors import InferenceFailed, InvalidRequest, StartupError
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.runtime.arena import SpikeWatch
from gateway.runtime.batch_axes import Graph, GraphTensor, candidates, without_rows
from gateway.runtime.cuda import CUDA_PROVIDER, CudaOptions, GraphRunner
from gateway.runtime.execution import CPU_PROVIDER, Provider, choose_providers, choose_runner
from gateway.runtime.manifest import MANIFEST_FILE, ModelConfig
from gateway.runtime.sealed import SealedFile
from gateway.runtime.trust import ModelContent
from gateway.types import Array, Signature, TensorSpec

Device: TypeAlias = Literal["cpu", "cuda"]

PROVIDERS: dict[Device, str] = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER}

DEFAULT_CONFIG = ModelConfig()
DEFAULT_CUDA = CudaOptions()

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

    def __init__(
        self,
        path: Path,
        device: Device,
        threads: int = 1,
        *,
        content: ModelContent | None = None,
        config: ModelConfig = DEFAULT_CONFIG,
        cuda: CudaOptions = DEFAULT_CUDA,
    ) -> None:
        """Load `path`, or the `content` that was read from it, to run with `threads` threads as its `model.toml` says.

        Raises `StartupError` if the file is no model, `device` cannot run it, or `config` cannot take effect there.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        # One thread launches CUDA kernels; more only contend (ONNX Runtime issue 20494).
        self.threads = 1 if device == "cuda" else threads
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Spinning threads burn whole cores while idle, once for every loaded model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = str(path if content is None else content.model.path)
        if content is not None:
            _offer_external(options, path.parent, content.external)
        with _named(path, source):
            read = partial(_read_signature, ort, source, content, path.parent)
            providers = choose_providers(ort, path, device, config, cuda, read)
            self._session = _load(ort, source, options, providers, config.runtime.asked)
            self.graph = _graph(self._session)
        self.signature = _likeliest(self.graph)
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = 4
        self.clock: Callable[[], float] = time.perf_counter if device == "cuda" else time.thread_time
        """Seconds, read before and after a run to tell what it costs. The thread's CPU time leaves out the wait for the
        interpreter, but says nothing of a GPU's."""
        self._output_names = [spec.name for spec in self.signature.outputs]
        with _named(path, source):
            self.bound = choose_runner(ort, self._session, self.signature, device, config.runtime, cuda)
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
        return self._run(inputs, self._shrinking if self._watch.is_due(size) else None)

    def run_quietly(self, inputs: dict[str, Array]) -> list[Array]:
        """As `run`, for made-up values: ONNX Runtime logs nothing of what it refuses."""
        return self._run(inputs, self._quiet)

    def _run(self, inputs: dict[str, Array], options: object) -> list[Array]:
        try:
            outputs: Sequence[Array] = (
                self._session.run(self._output_names, inputs, options) if self.bound is None else self.bound.run(inputs)
            )
        except self._invalid_input as error:
            raise InvalidRequest(f"the model refuses these values: {_first_line(error)}") from error
        except Exception as error:  # as above
            raise InferenceFailed(f"the model failed: {_first_line(error)}") from error
        return [np.asarray(output) for output in outputs]

    def know_rows(self, signature: Signature) -> None:
        """Of what the graph may mean, this is what was proved; inputs that clients do not see stay as they were."""
        proved = {spec.name: spec for spec in signature.inputs}
        self.signature = Signature(
            tuple(proved.get(spec.name, spec) for spec in self.signature.inputs), signature.outputs
        )

    def close(self) -> None:
        """Free the model's memory at once. Nothing may run afterwards."""
        if isinstance(self.bound, GraphRunner):
            self.bound.close()
        self.bound = None
        del self._session

    def warm_up(self, rows: int = 1) -> float | None:
        """Run `rows` rows of zeros, so that the first client does not pay for allocation.

        Seconds of the run; None if the model refuses zeros, which says nothing about real values.
        """
        inputs = {spec.name: _zeros(spec, rows) for spec in self.signature.inputs}
        if isinstance(self.bound, GraphRunner):
            self.bound.capture(inputs)
        self._watch.warmed(sum([array.nbytes for array in inputs.values()]))
        started = time.perf_counter()
        try:
            self.run(inputs)
        except (InvalidRequest, InferenceFailed):
            return None
        return time.perf_counter() - started


def _load(ort: ModuleType, source: str, options: Any, providers: list[Provider], asked: str = "") -> Any:
    """The session, on the first of the providers. Raises `StartupError`, saying what was `asked`, if there is none."""
    try:
        # A failure of CUDA would quietly go on, at a tenth of the speed, on the CPU: while loading, and in a run.
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise StartupError(f"ONNX Runtime cannot load it{asked}: {_first_line(error)}") from error
    session.disable_fallback()
    if session.get_providers()[0] != providers[0][0]:
        actual, wanted = session.get_providers()[0], providers[0][0]
        raise StartupError(f"runs on {actual}, not on {wanted} as configured{asked}")
    return session


def _offer_external(options: Any, folder: Path, external: dict[str, SealedFile] | None) -> None:
    """Say where a model that was read from `folder` finds its external data."""
    # What is not among the verified files must not be found at all: there is nothing below a file.
    place = folder if external is None else folder / MANIFEST_FILE
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(place))
    if external:
        buffers = [file.buffer for file in external.values()]
        sizes = [file.size for file in external.values()]
        options.add_external_initializers_from_files_in_memory(list(external), buffers, sizes)


def _read_signature(ort: ModuleType, source: str, content: ModelContent | None, folder: Path) -> Signature:
    """The signature of a model that is yet to be loaded to run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if content is not None:
        _offer_external(options, folder, content.external)
    return _likeliest(_graph(_load(ort, source, options, [(CPU_PROVIDER, {})])))


def _graph(session: Any) -> Graph:
    return Graph(
        inputs=tuple(_tensor(node) for node in session.get_inputs()),
        outputs=tuple(_tensor(node) for node in session.get_outputs()),
    )


def _likeliest(graph: Graph) -> Signature:
    """What it most likely means. Whoever loads the model to serve it proves it first (`proof.py`)."""
    return next(iter(candidates(graph)), without_rows(graph))


@contextmanager
def _named(path: Path, source: str) -> Iterator[None]:
    """Says of which model what is refused was asked, whatever it was read from."""
    try:
        yield
    except StartupError as error:
        raise StartupError(f"{path}: {str(error).replace(source, str(path))}") from error


def _zeros(spec: TensorSpec, rows: int) -> Array:
    """`rows` on the axis of the rows if it is variable, 1 on the other variable ones."""
    shape = tuple(
        (rows if axis == spec.axis else 1) if extent == -1 else extent for axis, extent in enumerate(spec.shape)
    )
    return np.full(shape, "" if spec.datatype == BYTES else 0, NUMPY_DTYPES[spec.datatype])


def _tensor(node: object) -> GraphTensor:
    name, onnx_type, shape = node.name, node.type, node.shape  # type: ignore[attr-defined]
    if onnx_type not in DATATYPE_OF_ONNX:
        raise StartupError(f"{name!r} is a {onnx_type}; no tensor of the protocol becomes one")
    dimensions = tuple(None if isinstance(extent, int) and extent < 0 else extent for extent in shape)
    return GraphTensor(name, DATATYPE_OF_ONNX[onnx_type], dimensions)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
