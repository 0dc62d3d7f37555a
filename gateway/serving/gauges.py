"""What the serving path looks like at this moment, for the metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.registry import ModelVersion, Registry
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.warming import WarmModel
from gateway.serving.route_table import RouteTable
from gateway.telemetry.metrics import (
    CHOSEN_ROWS,
    MODEL_MEMORY,
    MODEL_READY,
    PREDICTED_P99,
    PREDICTED_RUN,
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


def serving_gauges(
    registry: Registry, routes: RouteTable, scheduler: Scheduler, *, runs_models: bool = True
) -> Callable[[], Iterator[Gauge]]:
    """Threads, queue depth, readiness, memory, what was learned about the runs, and the routes in force.

    Of another process that runs the models it knows no threads and no learning.
    """

    def read() -> Iterator[Gauge]:
        if runs_models:
            yield THREAD_BUDGET, (), scheduler.budget
            yield THREADS_IN_USE, (), scheduler.threads_in_use
        for version in registry:
            yield QUEUED_ROWS, version.key, version.batcher.queued_rows
            yield MODEL_READY, version.key, float(version.batcher.problem is None)
            yield MODEL_MEMORY, version.key, version.memory_bytes
            yield CHOSEN_ROWS, version.key, version.batcher.chosen_rows
            if version.warm is not None:
                yield from _of_runs_here(version, version.warm)
        for key in registry.refused:
            yield MODEL_READY, key, 0
        for route in routes:
            yield ROUTE_REVISION, (route.name,), route.revision
            yield ROUTE_INVALID, (route.name,), float(route.name in routes.problems)
            for variant in route.variants:
                yield ROUTE_WEIGHT, (route.name, variant.name, variant.version), variant.weight

    return read


def _of_runs_here(version: ModelVersion, warm: WarmModel) -> Iterator[Gauge]:
    """What is learned is of the shape that was run last; no prediction where nothing was run yet."""
    assert isinstance(version.batcher, DynamicBatcher)  # noqa: S101 -- of a model that runs here
    yield THREAD_SECONDS, version.key, version.batcher.seat.thread_seconds
    yield THREAD_WAIT, version.key, version.batcher.seat.waited
    shape = warm.tuner.last
    point = shape.point(shape.rows)
    if math.isfinite(point.seconds):
        yield PREDICTED_RUN, version.key, point.seconds
        yield PREDICTED_P99, version.key, point.latency
