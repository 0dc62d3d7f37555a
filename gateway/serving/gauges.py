"""What the serving path looks like at this moment, for the metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from gateway.runtime.registry import ModelVersion, Registry
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import (
    CHOSEN_ROWS,
    MODEL_READY,
    PREDICTED_P99,
    PREDICTED_RUN,
    QUEUED_ROWS,
    ROUTE_INVALID,
    ROUTE_REVISION,
    ROUTE_WEIGHT,
    Gauge,
)


def serving_gauges(registry: Registry, routes: RouteTable) -> Callable[[], Iterator[Gauge]]:
    """Queue depth, readiness, what was learned about the runs, and the routes in force."""

    def read() -> Iterator[Gauge]:
        for version in registry:
            yield QUEUED_ROWS, version.key, version.batcher.queued_rows
            yield MODEL_READY, version.key, 1
            yield from _learned(version)
        for key in registry.refused:
            yield MODEL_READY, key, 0
        for route in routes:
            yield ROUTE_REVISION, (route.name,), route.revision
            yield ROUTE_INVALID, (route.name,), float(route.name in routes.problems)
            for variant in route.variants:
                yield ROUTE_WEIGHT, (route.name, variant.name, variant.version), variant.weight

    return read


def _learned(version: ModelVersion) -> Iterator[Gauge]:
    """Of the shape that was run last; no prediction where nothing was run yet."""
    shape = version.warm.tuner.last
    yield CHOSEN_ROWS, version.key, shape.rows
    point = shape.point(shape.rows)
    if math.isfinite(point.seconds):
        yield PREDICTED_RUN, version.key, point.seconds
        yield PREDICTED_P99, version.key, point.latency
