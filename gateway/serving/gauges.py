"""What the serving path looks like at this moment, for the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway.runtime.registry import Registry
from gateway.runtime.scheduler import Scheduler
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import (
    MODEL_READY,
    QUEUED_ROWS,
    ROUTE_INVALID,
    ROUTE_REVISION,
    ROUTE_WEIGHT,
    THREAD_BUDGET,
    THREAD_SECONDS,
    THREAD_WAIT,
    THREADS_IN_USE,
    Gauge,
)


def serving_gauges(registry: Registry, routes: RouteTable, scheduler: Scheduler) -> Callable[[], Iterator[Gauge]]:
    """Threads, queue depth, readiness, and the routes in force."""

    def read() -> Iterator[Gauge]:
        yield THREAD_BUDGET, (), scheduler.budget
        yield THREADS_IN_USE, (), scheduler.threads_in_use
        for version in registry:
            yield THREAD_SECONDS, version.key, version.batcher.seat.thread_seconds
            yield THREAD_WAIT, version.key, version.batcher.seat.waited
            yield QUEUED_ROWS, version.key, version.batcher.queued_rows
            yield MODEL_READY, version.key, 1
        for key in registry.refused:
            yield MODEL_READY, key, 0
        for route in routes:
            yield ROUTE_REVISION, (route.name,), route.revision
            yield ROUTE_INVALID, (route.name,), float(route.name in routes.problems)
            for variant in route.variants:
                yield ROUTE_WEIGHT, (route.name, variant.name, variant.version), variant.weight

    return read
