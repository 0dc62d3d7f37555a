"""Closes windows that are old and full enough, and publishes the verdict on each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from gateway.collector.catalog import Catalog, ModelFolder, Watched
from gateway.runtime.manifest import MonitoringConfig
from gateway.state.stats_store import OpenWindow, StatsStore
from gateway.stats.codec import from_bytes
from gateway.stats.judge import judge
from gateway.stats.sketch import WindowSketch
from gateway.stats.verdict import DEFAULT_THRESHOLDS, Status, Thresholds, Verdict
from gateway.types import ModelKey

logger = logging.getLogger(__name__)

LOGGED_REASONS = 3
"""The rest stands in the verdict."""


class WindowCloser:
    """Any collector may close any window: the store lets exactly one of them."""

    def __init__(
        self,
        stats: StatsStore,
        catalog: Catalog,
        *,
        clock: Callable[[], float],
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
    ) -> None:
        self._stats = stats
        self._catalog = catalog
        self._clock = clock
        self._thresholds = thresholds

    async def close_due(self, models: Mapping[str, ModelFolder]) -> list[Verdict]:
        """Close what is due and return what was published."""
        verdicts = []
        for name, folder in models.items():
            for version in folder.versions:
                verdict = await self._close_if_due(ModelKey(name, version), folder.monitoring)
                if verdict is not None:
                    verdicts.append(verdict)
        return verdicts

    async def _close_if_due(self, key: ModelKey, monitoring: MonitoringConfig) -> Verdict | None:
        window = await self._stats.progress(key.name, key.version)
        if window is None or not self._is_due(window, monitoring):
            return None
        known = self._catalog.get(key)
        return await self._close(key, known) if isinstance(known, Watched) else None

    def _is_due(self, window: OpenWindow, monitoring: MonitoringConfig) -> bool:
        age = self._clock() - window.opened
        return age >= monitoring.window_seconds and window.rows >= monitoring.min_rows

    async def _close(self, key: ModelKey, known: Watched) -> Verdict | None:
        """None if the window changed while it was being judged; it stays due."""
        parts = await self._stats.parts(key.name, key.version)
        if parts is None:
            return None
        # Read after the window: closing one publishes its verdict in the same step, so this is the one before it.
        previous = await self._stats.latest(key.name, key.version)
        verdict = self._judge(key, known.reference, parts.window, parts.blobs, previous)
        if not await self._stats.close_window(parts.window, verdict):
            return None
        _log(verdict)
        return verdict

    def _judge(
        self,
        key: ModelKey,
        reference: WindowSketch,
        window: OpenWindow,
        blobs: Mapping[str, bytes],
        previous: Verdict | None,
    ) -> Verdict:
        closed = self._clock()
        try:
            total = reference.empty()
            for blob in blobs.values():
                total.merge(from_bytes(blob))
            return judge(
                key.name,
                key.version,
                reference,
                total,
                opened=window.opened,
                closed=closed,
                previous=previous,
                thresholds=self._thresholds,
            )
        except ValueError as error:
            # Published, because a window that cannot be merged would otherwise stay due for ever.
            return Verdict(
                model=key.name,
                version=key.version,
                status=Status.INSUFFICIENT,
                opened=window.opened,
                closed=closed,
                rows=window.rows,
                reference_rows=reference.rows,
                reasons=(f"the window was filled for another reference: {error}",),
            )


def _log(verdict: Verdict) -> None:
    level = logging.INFO if verdict.status is Status.OK else logging.WARNING
    more = len(verdict.reasons) - LOGGED_REASONS
    reasons = [*verdict.reasons[:LOGGED_REASONS], *([f"and {more} more"] if more > 0 else [])]
    key = ModelKey(verdict.model, verdict.version)
    logger.log(level, "%s: %s in %d rows; %s", key, verdict.status, verdict.rows, "; ".join(reasons))
