"""On which providers a version runs, and through bindings or not: what the device and its `model.toml` come to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from gateway.errors import StartupError
from gateway.runtime.binding import BoundRunner, Place, unbindable
from gateway.runtime.cuda import (
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    CudaOptions,
    GraphRunner,
    cuda_place,
    engine_folder,
    engine_profile,
    provider_options,
    refuse_unusable,
    tensorrt_options,
)
from gateway.runtime.manifest import ModelConfig, RuntimeConfig
from gateway.types import Signature

CPU_PROVIDER = "CPUExecutionProvider"

Provider: TypeAlias = tuple[str, dict[str, str]]
"""Name and options."""


def choose_providers(
    ort: ModuleType, path: Path, device: str, config: ModelConfig, cuda: CudaOptions, read: Callable[[], Signature]
) -> list[Provider]:
    """In the order in which they are offered the nodes of the model. `read` reads its signature, where that matters.

    Raises `StartupError` naming the key of `model.toml` that cannot take effect.
    """
    refuse_unusable(config.runtime, device, ort.get_available_providers())
    if device == "cpu":
        return [(CPU_PROVIDER, {})]
    providers = [(CUDA_PROVIDER, provider_options(config.runtime, cuda))]
    if config.runtime.tensorrt is not None:
        profile = engine_profile(read(), config.batching)
        folder = engine_folder(cuda, path, ort.__version__)
        providers.insert(0, (TENSORRT_PROVIDER, tensorrt_options(config.runtime, cuda, folder, profile)))
    return providers


def choose_runner(
    ort: ModuleType, session: Any, signature: Signature, device: str, config: RuntimeConfig, cuda: CudaOptions
) -> BoundRunner | None:
    """What runs the session through bindings; None where `session.run` is to do it.

    Raises `StartupError` naming the key of `model.toml` that cannot take effect.
    """
    is_wanted = device == "cuda" if config.io_binding is None else config.io_binding
    obstacle = unbindable(signature)
    if obstacle is not None:
        for key, is_set in {"io_binding": config.io_binding, "cuda_graphs": config.cuda_graphs}.items():
            if is_set:
                raise StartupError(f"model.toml asks for runtime.{key}, which cannot be had: {obstacle}")
    if not is_wanted or obstacle is not None:
        return None
    if device == "cpu":
        return BoundRunner(session, signature, Place())
    place = cuda_place(ort, cuda, keeps_outputs=config.cuda_graphs)
    return (
        graph_runner(ort, session, signature, place) if config.cuda_graphs else BoundRunner(session, signature, place)
    )


def graph_runner(ort: ModuleType, session: Any, signature: Signature, place: Place) -> GraphRunner:
    """Raises `StartupError` if an output has no place that a graph could write to."""
    runner = GraphRunner(ort, session, signature, place)
    if runner.unplaced:
        raise StartupError(
            "model.toml asks for runtime.cuda_graphs, which need the shape of every output beforehand; "
            f"the inputs do not tell that of {runner.unplaced[0]!r}"
        )
    return runner
