"""The use cases behind the protocol's extensions, as the gRPC port needs them.

Documents are those of the extensions over HTTP: Triton's JSON is the JSON form of the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.types import JsonObject


class ModelRepository(Protocol):
    """Extension `model_repository`."""

    async def index(self, *, only_ready: bool) -> list[JsonObject]:
        """Every version as `{"name", "version", "state", "reason"}`, or only those that take requests."""

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Load a model, or load it anew. Raises `GatewayError`."""

    async def unload(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Stop serving a model. Raises `GatewayError`."""


class ModelStatistics(Protocol):
    """Extension `statistics`."""

    def statistics(self, model: str | None, version: str | None) -> JsonObject:
        """`{"model_stats": [...]}` of a version, of all versions of a model, or of everything. Raises `GatewayError`.

        The members are those of Triton's `ModelStatistics` message.
        """


class ModelConfiguration(Protocol):
    """Extension `model_configuration`."""

    def configuration(self, model: str, version: str | None) -> JsonObject:
        """The JSON form of Triton's `ModelConfig`. Raises `GatewayError`."""


@dataclass(frozen=True, slots=True)
class Extensions:
    """Those that are there; the RPCs of the others answer UNIMPLEMENTED."""

    repository: ModelRepository | None = None
    statistics: ModelStatistics | None = None
    configuration: ModelConfiguration | None = None

    @property
    def names(self) -> list[str]:
        """As `ServerMetadata` advertises them."""
        known = {
            "model_repository": self.repository,
            "statistics": self.statistics,
            "model_configuration": self.configuration,
        }
        return [name for name, use_case in known.items() if use_case is not None]
