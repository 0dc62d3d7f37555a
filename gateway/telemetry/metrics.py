"""Every instrument, declared once, and the counters behind those of the serving path.

The serving path records once a batch, into numpy arrays; `prometheus_client` sees them only when it is asked to expose.
Gauges whose truth lives elsewhere are read at that moment through sources.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.types import Array, ModelKey


class Instrument(NamedTuple):
    """Name, kind, help and labels as they are exposed."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    merge: Literal["sum", "max", "min"] = "sum"
    """What a gauge of several workers is of their values; counters and histograms are summed."""


_VERSION = ("model", "version")

REQUESTS = Instrument(
    "gateway_requests_total", "counter", "Predictions answered with 200.", ("model", "version", "variant")
)
ROWS = Instrument("gateway_rows_total", "counter", "Rows of the predictions answered with 200.", _VERSION)
BATCHES = Instrument("gateway_batches_total", "counter", "ONNX Runtime calls that succeeded.", _VERSION)
ERRORS = Instrument(
    "gateway_errors_total", "counter", "Prediction requests refused or failed, by error code.", ("model", "reason")
)
CANCELLED = Instrument(
    "gateway_cancelled_total", "counter", "Predictions whose client left before the answer.", _VERSION
)
LATENCY = Instrument(
    "gateway_request_duration_seconds", "histogram", "From admission to the end of the run, by request.", _VERSION
)
QUEUE = Instrument("gateway_queue_duration_seconds", "histogram", "Wait before the run, by request.", _VERSION)
RUN = Instrument("gateway_run_duration_seconds", "histogram", "ONNX Runtime call, by batch.", _VERSION)
BATCH_ROWS = Instrument("gateway_batch_rows", "histogram", "Rows in one ONNX Runtime call.", _VERSION)
ENGINE_BATCH_ROWS = Instrument(
    "gateway_engine_batch_rows", "histogram", "Rows in one ONNX Runtime call of the engine process.", _VERSION
)
QUEUED_ROWS = Instrument("gateway_queue_rows", "gauge", "Rows waiting now.", _VERSION)
THREAD_BUDGET = Instrument("gateway_thread_budget", "gauge", "Threads that all runs together may use.", ())
THREADS_IN_USE = Instrument("gateway_threads_in_use", "gauge", "Threads of the runs that are on now.", ())
THREAD_SECONDS = Instrument(
    "gateway_thread_seconds_total",
    "counter",
    "Seconds of all runs times their threads: who uses the machine.",
    _VERSION,
)
THREAD_WAIT = Instrument(
    "gateway_thread_wait_seconds_total", "counter", "Time that a batch was ready and waited for threads.", _VERSION
)
MODEL_READY = Instrument("gateway_model_ready", "gauge", "1 if loaded, 0 if refused at load.", _VERSION, "min")
CHOSEN_ROWS = Instrument("gateway_chosen_batch_rows", "gauge", "Rows that a run may have now.", _VERSION, "max")
PREDICTED_RUN = Instrument(
    "gateway_predicted_run_seconds", "gauge", "Mean of a run with the chosen rows, as learned.", _VERSION, "max"
)
PREDICTED_P99 = Instrument(
    "gateway_predicted_p99_seconds",
    "gauge",
    "From arrival to the end of a run with the chosen rows at the 99th percentile, as learned.",
    _VERSION,
    "max",
)
MODEL_MEMORY = Instrument(
    "gateway_model_memory_bytes", "gauge", "Memory that a version took when it was loaded, measured.", _VERSION
)
LOAD_FAILURES = Instrument(
    "gateway_model_load_failures_total",
    "counter",
    "Versions that were to be loaded after the start and could not.",
    _VERSION,
)
ROUTE_REVISION = Instrument("gateway_route_revision", "gauge", "Revision of the route in force.", ("route",), "min")
ROUTE_WEIGHT = Instrument(
    "gateway_route_weight_percent", "gauge", "Weight of a variant in force.", ("route", "variant", "version"), "max"
)
ROUTE_INVALID = Instrument(
    "gateway_route_invalid",
    "gauge",
    "1 while the stored route is unusable and the last good one serves.",
    ("route",),
    "max",
)
LOG_SAMPLED = Instrument("gateway_log_sampled_rows_total", "counter", "Rows chosen for the request log.", ("model",))
LOG_WRITTEN = Instrument("gateway_log_written_entries_total", "counter", "Log entries the store took.", ("model",))
LOG_DROPPED = Instrument(
    "gateway_log_dropped_entries_total", "counter", "Log entries lost because the buffer was full.", ("model",)
)
TRACES = Instrument(
    "gateway_traces_total", "counter", "Requests chosen to be traced, by what became of the trace.", ("outcome",)
)
LABELS = Instrument(
    "gateway_labels_total", "counter", "Labels taken by /v2/feedback, by outcome.", ("model", "outcome")
)
DRIFT_STATUS = Instrument(
    "gateway_drift_status", "gauge", "Latest verdict: 0 ok, 1 warning, 2 alarm, -1 undecided.", _VERSION, "max"
)
DRIFT_SCORE = Instrument(
    "gateway_drift_score",
    "gauge",
    "Effect sizes of the latest verdict, by feature and statistic.",
    ("model", "version", "feature", "statistic"),
    "max",
)
WORKERS = Instrument("gateway_workers", "gauge", "Worker processes that there should be.", ())
WORKER_UP = Instrument("gateway_worker_up", "gauge", "1 while the worker takes requests.", ("worker",))
WORKER_RESTARTS = Instrument(
    "gateway_worker_restarts_total", "counter", "Times that the worker was started again.", ("worker",)
)

KEPT_ELSEWHERE = (THREAD_SECONDS, THREAD_WAIT)
"""Counters that are read as gauges are."""

INSTRUMENTS = tuple(value for value in list(globals().values()) if isinstance(value, Instrument))
OF_THE_SUPERVISOR = frozenset((WORKERS, WORKER_UP, WORKER_RESTARTS))
"""Exposed where there are several workers, by their supervisor."""

SECONDS_BUCKETS = np.array(
    [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
)
ROWS_BUCKETS = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])

MAX_WAITING = 64
"""Batches whose requests' times are held before they are counted."""

Labels: TypeAlias = tuple[str, ...]
Gauge: TypeAlias = tuple[Instrument, Labels, float]

FAMILIES: dict[str, type[GaugeMetricFamily | CounterMetricFamily]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
}


class Histogram:
    """Counts of observations by bucket, as Prometheus means them: `le` is inclusive."""

    __slots__ = ("_bounds_list", "bounds", "counts", "total")

    def __init__(self, bounds: Array) -> None:
        self.bounds = bounds
        self._bounds_list: list[float] = bounds.tolist()
        self.counts = np.zeros(len(bounds) + 1, np.int64)
        self.total = 0.0

    def observe(self, values: Array) -> None:
        """Add an array of observations."""
        self.counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self.counts))
        self.total += float(values.sum())

    def observe_one(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self._bounds_list, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative (le, count) pairs."""
        edges = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(edges, np.cumsum(self.counts).astype(float).tolist(), strict=True))


class VersionMetrics:
    """What one model version did."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.rows = 0
        self.batches = 0
        self.cancelled = 0
        self._latency = Histogram(SECONDS_BUCKETS)
        self._queue = Histogram(SECONDS_BUCKETS)
        self.run = Histogram(SECONDS_BUCKETS)
        self.batch_rows = Histogram(ROWS_BUCKETS)
        self.engine_batch_rows = Histogram(ROWS_BUCKETS)
        self._waiting: list[tuple[list[float], float, float]] = []

    def observe_requests(self, enqueued: list[float], started: float, finished: float) -> None:
        """When the requests of a batch came, and when its run began and ended, in seconds of one clock.

        They are counted some batches at a time, or when somebody looks.
        """
        self._waiting.append((enqueued, started, finished))
        if len(self._waiting) >= MAX_WAITING:
            self._fold()

    @property
    def latency(self) -> Histogram:
        """Seconds from admission to the end of the run, by request."""
        self._fold()
        return self._latency

    @property
    def queue(self) -> Histogram:
        """Seconds before the run, by request."""
        self._fold()
        return self._queue

    def _fold(self) -> None:
        if not self._waiting:
            return
        enqueued, started, finished = zip(*self._waiting, strict=True)
        self._waiting.clear()
        counts = [len(times) for times in enqueued]
        times = np.fromiter(chain.from_iterable(enqueued), np.float64, sum(counts))
        self._queue.observe(np.repeat(started, counts) - times)
        self._latency.observe(np.repeat(finished, counts) - times)


class GatewayMetrics(Collector):
    """The counters of the serving path, and the sources of the gauges."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        self._versions: dict[ModelKey, VersionMetrics] = {}
        self._counters: dict[Instrument, Counter[Labels]] = {
            instrument: Counter()
            for instrument in (ERRORS, LOAD_FAILURES, LOG_SAMPLED, LOG_WRITTEN, LOG_DROPPED, TRACES, LABELS)
        }
        self._gauges: list[Callable[[], Iterable[Gauge]]] = []

    def version(self, key: ModelKey) -> VersionMetrics:
        """The counters of a version; made on first use."""
        try:
            return self._versions[key]
        except KeyError:
            return self._versions.setdefault(key, VersionMetrics())

    def count(self, instrument: Instrument, *labels: str, amount: int = 1) -> None:
        """Add to a counter that is not kept by version."""
        self._counters[instrument][labels] += amount

    def add_gauges(self, source: Callable[[], Iterable[Gauge]]) -> None:
        """`source` is asked for (instrument, label values, value) at every exposition.

        A counter that is kept elsewhere is read likewise.
        """
        self._gauges.append(source)

    def collect(self) -> Iterator[Metric]:
        """Everything, for `prometheus_client`."""
        yield from self._version_families()
        for instrument, values in self._counters.items():
            counter = CounterMetricFamily(instrument.name, instrument.help, labels=instrument.labels)
            for labels, value in values.items():
                counter.add_metric(labels, value)
            yield counter
        yield from self._gauge_families()

    def _version_families(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(REQUESTS.name, REQUESTS.help, labels=REQUESTS.labels)
        for key, version in self._versions.items():
            for variant, value in version.requests.items():
                requests.add_metric((*key, variant), value)
        yield requests
        for instrument, attribute in ((ROWS, "rows"), (BATCHES, "batches"), (CANCELLED, "cancelled")):
            counter = CounterMetricFamily(instrument.name, instrument.help, labels=_VERSION)
            for key, version in self._versions.items():
                counter.add_metric(key, getattr(version, attribute))
            yield counter
        attributes = (
            *((LATENCY, "latency"), (QUEUE, "queue"), (RUN, "run"), (BATCH_ROWS, "batch_rows")),
            (ENGINE_BATCH_ROWS, "engine_batch_rows"),
        )
        for instrument, attribute in attributes:
            family = HistogramMetricFamily(instrument.name, instrument.help, labels=_VERSION)
            for key, version in self._versions.items():
                histogram: Histogram = getattr(version, attribute)
                if instrument is ENGINE_BATCH_ROWS and not histogram.total:
                    # Without an engine process there is nothing to say.
                    continue
                family.add_metric(key, histogram.buckets(), histogram.total)
            yield family

    def _gauge_families(self) -> Iterator[Metric]:
        families = {
            instrument: FAMILIES[instrument.kind](instrument.name, instrument.help, labels=instrument.labels)
            for instrument in INSTRUMENTS
            if (instrument.kind == "gauge" and instrument not in OF_THE_SUPERVISOR) or instrument in KEPT_ELSEWHERE
        }
        for source in self._gauges:
            for instrument, labels, value in source():
                families[instrument].add_metric(labels, value)
        yield from families.values()
