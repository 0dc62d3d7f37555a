"""What the collectors found out, read back for the ops port and the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import asdict

from gateway.errors import NotFound, StoreUnavailable
from gateway.runtime.registry import Registry
from gateway.state.stats_store import StatsStore
from gateway.stats.verdict import Status, Verdict
from gateway.telemetry.metrics import DRIFT_SCORE, DRIFT_STATUS, GatewayMetrics, Gauge
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

GAUGE_TIMEOUT_SECONDS = 1.0
"""A scrape does not wait longer for a store that is slow or down."""
STATUS_VALUES = {Status.OK: 0, Status.WARNING: 1, Status.ALARM: 2}
STATISTICS = ("ks", "psi", "cramers_v")


class Watching:
    """Verdicts, open windows and accuracy, by model."""

    def __init__(self, registry: Registry, stats: StatsStore, metrics: GatewayMetrics) -> None:
        self._registry = registry
        self._stats = stats
        self._verdicts: list[Verdict] = []
        metrics.add_gauges(self._gauges)

    async def report(self, name: str | None) -> list[JsonObject]:
        """One entry a model. Raises `NotFound`, `StoreUnavailable`."""
        if name is not None and name not in self._registry.names:
            raise NotFound(f"unknown model {name!r}; models: {', '.join(self._registry.names)}")
        names = [name] if name is not None else self._registry.names
        return [await self._report(model) for model in names]

    async def history(self, name: str, limit: int) -> list[JsonObject]:
        """Past verdicts, newest first. Raises as `report` does."""
        if name not in self._registry.names:
            raise NotFound(f"unknown model {name!r}; models: {', '.join(self._registry.names)}")
        verdicts = await self._stats.history(name, limit=limit)
        return [verdict.model_dump(mode="json") for verdict in reversed(verdicts)]

    async def refresh_gauges(self) -> None:
        """Read the latest verdicts; without the store the last known ones stay."""
        try:
            async with asyncio.timeout(GAUGE_TIMEOUT_SECONDS):
                found = [await self._stats.latest(*version.key) for version in self._registry]
        except (StoreUnavailable, TimeoutError) as error:
            logger.warning("drift gauges are stale: %s", error)
            return
        self._verdicts = [verdict for verdict in found if verdict is not None]

    async def _report(self, name: str) -> JsonObject:
        versions = []
        # Before the first look into the store: meanwhile a version may be unloaded.
        configs = {version: self._registry.get(name, version).config for version in self._registry.versions(name)}
        for version, config in configs.items():
            verdict = await self._stats.latest(name, version)
            window = await self._stats.progress(name, version)
            monitoring = config.monitoring
            versions.append(
                {
                    "version": version,
                    "verdict": verdict.model_dump(mode="json") if verdict else None,
                    "window": {
                        "opened": window.opened if window else None,
                        "rows": window.rows if window else 0,
                        "min_rows": monitoring.min_rows,
                        "window_seconds": monitoring.window_seconds,
                    },
                }
            )
        performance = await self._stats.performance(name)
        return {
            "name": name,
            "versions": versions,
            "performance": [
                {
                    **asdict(record),
                    "accuracy": record.accuracy,
                    "mean_absolute_error": record.mean_absolute_error,
                    "root_mean_squared_error": record.root_mean_squared_error,
                }
                for record in performance
            ],
            "collector": await self._stats.counters(name),
        }

    def _gauges(self) -> Iterator[Gauge]:
        for verdict in self._verdicts:
            key = (verdict.model, verdict.version)
            yield DRIFT_STATUS, key, STATUS_VALUES.get(verdict.status, -1)
            for feature in verdict.features:
                for statistic in STATISTICS:
                    value = getattr(feature, statistic)
                    if value is not None:
                        yield DRIFT_SCORE, (*key, feature.name, statistic), value
