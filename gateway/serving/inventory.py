"""What clients are told about what is served: by whom, in which versions, and whether all of it is ready."""

from __future__ import annotations

from gateway.runtime.registry import ModelVersion
from gateway.serving.dataplane import DataPlane
from gateway.serving.route_table import RouteTable
from gateway.types import JsonObject, TensorSpec

SERVER_NAME = "model-gateway"
PLATFORM = "onnxruntime_onnx"


class Inventory:
    """Read-only, over one data plane."""

    def __init__(self, plane: DataPlane, routes: RouteTable) -> None:
        self._plane = plane
        self._registry = plane.registry
        self._routes = routes

    def version(self, name: str, version: str | None) -> ModelVersion:
        """The version that a description is of: without a number, the one that takes most traffic.

        Raises `NotFound`, or `Unavailable` for one that is there but was refused.
        """
        return self._routes.leading(name) if version is None else self._registry.get(name, version)

    def metadata(self, name: str, version: str | None) -> JsonObject:
        """The protocol's model metadata. Raises as `version` does."""
        described = self.version(name, version)
        return {
            "name": described.key.name,
            "versions": self._registry.versions(described.key.name),
            "platform": PLATFORM,
            "inputs": [_tensor_metadata(spec) for spec in described.signature.inputs],
            "outputs": [_tensor_metadata(spec) for spec in described.signature.outputs],
        }

    def problem(self) -> str | None:
        """Why the gateway is not ready; None if it is."""
        if self._plane.is_draining:
            return "the gateway is shutting down"
        if self._registry.refused:
            return "not loaded: " + "; ".join(f"{key}: {why}" for key, why in self._registry.refused.items())
        if not self._routes.is_known:
            return "the routes are not known yet: the store has not answered since the start"
        return None


def _tensor_metadata(spec: TensorSpec) -> JsonObject:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
