"""What the serving path looks like at this moment, for the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.runtime.registry import Registry
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import (
    MODEL_READY,
    QUEUED_ROWS,
    ROUTE_INVALID,
    ROUTE_REVISION,
    ROUTE_WEIGHT,
    Gauge,
)


def serving_gauges(registry: Registry, routes: RouteTable) -> Callable[[], Iterator[Gauge]]:
    """Queue depth, readiness, and the routes in force."""

    def read() -> Iterator[Gauge]:
        for version in registry:
            yield QUEUED_ROWS, version.key, version.batcher.queued_rows
            yield MODEL_READY, version.key, float(version.batcher.problem is None)
        for key in registry.refused:
            yield MODEL_READY, key, 0
        for route in routes:
            yield ROUTE_REVISION, (route.name,), route.revision
            yield ROUTE_INVALID, (route.name,), float(route.name in routes.problems)
            for variant in route.variants:
                yield ROUTE_WEIGHT, (route.name, variant.name, variant.version), variant.weight

    return read
