"""What every worker of a gateway has in common, told by one and put in force in another."""

from __future__ import annotations

from gateway.runtime.registry import Registry
from gateway.serving.model_control import ModelControl
from gateway.serving.trace_settings import TraceSettings
from gateway.telemetry.log_settings import LogSettings
from gateway.types import JsonObject


class WorkerState:
    """What is loaded, and the settings of the log and of traces. Routes are not among it: they are in the store."""

    def __init__(self, registry: Registry, control: ModelControl, logs: LogSettings, traces: TraceSettings) -> None:
        self._registry = registry
        self._control = control
        self._logs = logs
        self._traces = traces

    def document(self) -> JsonObject:
        """As `become` takes it."""
        return {
            "loaded": [str(version.key) for version in self._registry],
            "refused": [str(key) for key in self._registry.refused],
            "logging": self._logs.document(),
            "trace": self._traces.document(),
        }

    async def become(self, wanted: JsonObject) -> None:
        """Load what is missing, unload what is too much, and take the settings over.

        Raises what `ModelControl.load` and `unload` raise; some of it may have been done then.
        """
        wanted_loaded, wanted_refused = set(wanted["loaded"]), set(wanted["refused"])
        loaded = {str(version.key) for version in self._registry}
        for key in sorted(wanted_loaded - loaded):
            await self._control.load(*key.split("/"))
        refused = {str(key) for key in self._registry.refused}
        for key in sorted((loaded - wanted_loaded) | (refused - wanted_refused)):
            await self._control.unload(*key.split("/"))
        # Where nothing is traced there is nothing to change either.
        if self._logs.document() != wanted["logging"]:
            self._logs.change(wanted["logging"])
        if self._traces.document() != wanted["trace"]:
            self._traces.change(wanted["trace"])
