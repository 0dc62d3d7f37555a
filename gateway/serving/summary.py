"""What the terminal is told about the models that are served; as JSON it goes from a worker to its supervisor."""

from __future__ import annotations

from typing import NamedTuple

from gateway.runtime.examples import example_row
from gateway.runtime.registry import ModelVersion, Registry
from gateway.runtime.session import Device
from gateway.types import JsonObject, TensorSpec


class Summary(NamedTuple):
    """Of one gateway at one moment."""

    device: Device
    models: dict[str, list[str]]
    """Versions by model."""
    refused: dict[str, str]
    """Why, by `model/version`."""
    example: tuple[str, JsonObject] | None
    """A model, and the body of a request that it answers; None if nothing is loaded."""


def summary_of(registry: Registry, device: Device) -> Summary:
    """As things are now."""
    models = {name: registry.versions(name) for name in registry.names}
    refused = {str(key): reason for key, reason in registry.refused.items()}
    example = _example(registry.latest(registry.names[0])) if models else None
    return Summary(device, models, refused, example)


def _example(version: ModelVersion) -> tuple[str, JsonObject]:
    return version.key.name, {"inputs": [_tensor(version, spec) for spec in version.signature.inputs]}


def _tensor(version: ModelVersion, spec: TensorSpec) -> JsonObject:
    shape, data = example_row(version, spec)
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data}
