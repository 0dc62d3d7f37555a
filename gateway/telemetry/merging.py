"""Metrics and statistics of several workers as those of one gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import INSTRUMENTS
from gateway.types import JsonObject

Values: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""By name and labels of the sample."""

MERGES: Mapping[str, Callable[[float, float], float]] = {"sum": lambda one, other: one + other, "max": max, "min": min}
_MERGE_OF_GAUGE = {instrument.name: instrument.merge for instrument in INSTRUMENTS if instrument.kind == "gauge"}


class Scrape:
    """The metrics of one exposition, or of several taken together."""

    def __init__(self, families: Iterable[Metric] = ()) -> None:
        self._families: dict[str, tuple[Metric, Values]] = {}
        for family in families:
            self._add(family, {(s.name, tuple(sorted(s.labels.items()))): s.value for s in family.samples})

    @classmethod
    def of_text(cls, text: str) -> Scrape:
        """Of Prometheus's text format."""
        return cls(text_string_to_metric_families(text))

    def add(self, other: Scrape) -> None:
        """Take another worker's metrics in: counters and histograms add up, gauges as their instruments say."""
        for family, values in other._families.values():
            self._add(family, values)

    def counts(self) -> Scrape:
        """What only ever grows, and so outlives its worker: without the gauges."""
        kept = Scrape()
        for family, values in self._families.values():
            if family.type != "gauge":
                kept._add(family, values)
        return kept

    def families(self) -> list[Metric]:
        """For `prometheus_client`."""
        return [_with_samples(family, values) for family, values in self._families.values()]

    def _add(self, family: Metric, values: Values) -> None:
        _, known = self._families.setdefault(family.name, (family, {}))
        merge = MERGES[_MERGE_OF_GAUGE[family.name] if family.type == "gauge" else "sum"]
        for key, value in values.items():
            known[key] = merge(known[key], value) if key in known else value


def _with_samples(family: Metric, values: Values) -> Metric:
    metric = Metric(family.name, family.documentation, family.type)
    for (name, labels), value in values.items():
        metric.add_sample(name, dict(labels), value)
    return metric


def merged_statistics(documents: Iterable[JsonObject]) -> JsonObject:
    """Documents of Triton's "Statistics Extension" as one: everything adds up, and the last inference is the latest."""
    versions: dict[tuple[str, str], JsonObject] = {}
    for document in documents:
        for entry in document["model_stats"]:
            key = entry["name"], entry["version"]
            versions[key] = _added(versions[key], entry) if key in versions else entry
    return {"model_stats": list(versions.values())}


def _added(one: JsonObject, other: JsonObject) -> JsonObject:
    sizes: dict[int, JsonObject] = {}
    for entry in (*one["batch_stats"], *other["batch_stats"]):
        size = entry["batch_size"]
        sizes[size] = {**_durations(sizes[size], entry), "batch_size": size} if size in sizes else entry
    return {
        **one,
        "last_inference": max(one["last_inference"], other["last_inference"]),
        "inference_count": one["inference_count"] + other["inference_count"],
        "execution_count": one["execution_count"] + other["execution_count"],
        "inference_stats": _durations(one["inference_stats"], other["inference_stats"]),
        "batch_stats": [sizes[size] for size in sorted(sizes)],
    }


def _durations(one: JsonObject, other: JsonObject) -> JsonObject:
    return {
        name: {part: duration[part] + other[name][part] for part in duration}
        for name, duration in one.items()
        if isinstance(duration, dict)
    }
