"""What clients are told about what is served: what it takes and gives, what it did, and whether all of it is ready.

Descriptions are JSON documents; the gRPC port makes messages of them, which have the same members.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.protocol.model_config import PLATFORM, QueueLimits, model_config
from gateway.runtime.manifest import MODEL_FILE
from gateway.runtime.registry import Loader, ModelVersion
from gateway.serving.dataplane import DataPlane
from gateway.serving.route_table import RouteTable
from gateway.types import JsonObject, TensorSpec

SERVER_NAME = "model-gateway"
EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration", "parameters"),
    *("schedule_policy", "statistics"),
)
"""Those of Triton's that every client may use."""
REPOSITORY_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")
"""Of a port whose clients may load and unload models."""


class Inventory:
    """Read-only, over one data plane."""

    def __init__(
        self, plane: DataPlane, routes: RouteTable, loader: Loader, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` is Unix time."""
        self._plane = plane
        self._registry = plane.registry
        self._routes = routes
        self._loader = loader
        self._clock = clock

    def version(self, model: str, version: str | None) -> ModelVersion:
        """The version that a description is of: without a number, the one that takes most traffic.

        Raises `NotFound`, or `Unavailable` for one that is there but was refused.
        """
        if version is None:
            return self._routes.leading(model)
        return self._registry.get(self._routes.model_of(model), version)

    def metadata(self, model: str, version: str | None) -> JsonObject:
        """The protocol's model metadata. Raises as `version` does."""
        described = self.version(model, version)
        return {
            "name": described.key.name,
            "versions": self._registry.versions(described.key.name),
            "platform": PLATFORM,
            "inputs": [_tensor_metadata(spec) for spec in described.signature.inputs],
            "outputs": [_tensor_metadata(spec) for spec in described.signature.outputs],
        }

    def configuration(self, model: str, version: str | None) -> JsonObject:
        """Triton's `ModelConfig`. Raises as `version` does."""
        described = self.version(model, version)
        batching = described.config.batching
        limits = QueueLimits(
            max_batch_rows=batching.rows_limit,
            chosen_rows=batching.preferred_batch_rows or (described.batcher.chosen_rows,),
            max_request_rows=batching.max_request_rows,
            max_queue_rows=batching.max_queue_rows,
            timeout=self._loader.request_timeout,
            max_delay=batching.max_delay_ms / 1e3,
        )
        gpu = self._loader.cuda.device_id if self._loader.device == "cuda" else None
        return model_config(described.key.name, described.signature, limits, file=MODEL_FILE, gpu=gpu)

    def statistics(self, model: str | None = None, version: str | None = None) -> JsonObject:
        """Triton's statistics of a version, of all versions of a model, or of everything. Raises as `version` does."""
        now = self._clock()
        model = None if model is None else self._routes.model_of(model)
        if model is None:
            versions = list(self._registry)
        elif version is None:
            # Says what is wrong with a model that has none.
            self._registry.latest(model)
            versions = [self._registry.get(model, number) for number in self._registry.versions(model)]
        else:
            versions = [self._registry.get(model, version)]
        return {"model_stats": [described.statistics.document(described.key, now) for described in versions]}

    def problem(self) -> str | None:
        """Why the gateway is not ready; None if it is."""
        if self._plane.is_draining:
            return "the gateway is shutting down"
        if self._registry.refused:
            return "not loaded: " + "; ".join(f"{key}: {why}" for key, why in self._registry.refused.items())
        for version in self._registry:
            if version.batcher.problem is not None:
                return f"{version.key}: {version.batcher.problem}"
        if not self._routes.is_known:
            return "the routes are not known yet: the store has not answered since the start"
        return None


def _tensor_metadata(spec: TensorSpec) -> JsonObject:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
