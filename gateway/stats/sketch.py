"""Mergeable summaries of the values a model version saw: what the collector keeps instead of rows.

The rule of this file: merging is exact for counts and within the quantile sketch's stated error for the rest, so any
number of collectors may each keep a part. Bins and categories are frozen with the reference and never adapt to traffic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from datasketches import kll_floats_sketch

from gateway.stats.verdict import Kind
from gateway.types import Array

Counts: TypeAlias = npt.NDArray[np.int64]

KLL_K = 800
"""Rank error 0.35 % in 9 KB. One k for all: merging a smaller one in would bring its larger error along."""
BINS = 10
"""Bins of a continuous feature, the number that the usual PSI bands 0.1 and 0.25 were made for."""
MAX_DISCRETE_BINS = 20
"""A reference column with at most this many distinct values has one bin for each of them."""
MAX_CATEGORIES = 100
"""Categories counted by name when the manifest does not list them; the rest is `OTHER`."""


class NumericSketch:
    """Histogram on the reference's edges, and a KLL quantile sketch (Karnin, Lang, Liberty 2016, arXiv:1603.05346).

    Bin i holds `edges[i-1] < x <= edges[i]`; the first and last are open, so there are `len(edges) + 1` bins. Values
    are rounded to single precision on the way in: 0.1 must be the same number whether it came as FP32 or FP64, or every
    tied value of a discrete feature would look shifted.
    """

    kind: ClassVar[Kind] = "numeric"

    def __init__(self, edges: Sequence[float] | Array) -> None:
        self.edges = np.asarray(edges, dtype=np.float32)
        self.counts: Counts = np.zeros(len(self.edges) + 1, dtype=np.int64)
        self.missing = 0
        self.quantiles: Any = kll_floats_sketch(KLL_K)

    @classmethod
    def of_reference(cls, values: Array) -> NumericSketch:
        """Edges from these values, and the values themselves."""
        numbers = as_numbers(values)
        sketch = cls(_edges(numbers))
        sketch.add(numbers)
        return sketch

    @property
    def count(self) -> int:
        """Values that are not missing."""
        return int(self.counts.sum())

    @property
    def rank_error(self) -> float:
        """How far a rank read from the sketch may be off, as a fraction; 0 while it still holds every value."""
        return float(self.quantiles.normalized_rank_error(False)) if self.quantiles.is_estimation_mode() else 0.0

    def empty(self) -> NumericSketch:
        """The same bins without values."""
        return NumericSketch(self.edges)

    def convert(self, values: Array) -> Array:
        """What `add` takes."""
        return as_numbers(values)

    def add(self, numbers: Array) -> None:
        """Add single-precision numbers, shape [rows]; NaN counts as missing."""
        missing = np.isnan(numbers)
        if missing.any():
            self.missing += int(missing.sum())
            numbers = numbers[~missing]
        # side="left" counts the edges below x, which is the index of the bin that is closed on the right.
        bins = np.searchsorted(self.edges, numbers, side="left")
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.quantiles.update(numbers)

    def merge(self, other: FeatureSketch) -> None:
        """Add the values of a sketch with the same bins, else raise `ValueError`."""
        if not isinstance(other, NumericSketch) or not np.array_equal(self.edges, other.edges):
            raise ValueError("sketches with different bins do not merge")
        self.counts += other.counts
        self.missing += other.missing
        self.quantiles.merge(other.quantiles)


class CategoricalSketch:
    """Counts of the known categories, of everything else (`OTHER`, the last count), and of missing values."""

    kind: ClassVar[Kind] = "categorical"

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = tuple(categories)
        self.counts: Counts = np.zeros(len(self.categories) + 1, dtype=np.int64)
        self.missing = 0
        self._index = {category: index for index, category in enumerate(self.categories)}

    @classmethod
    def of_reference(cls, values: Array, categories: Sequence[str] | None = None) -> CategoricalSketch:
        """The named categories, else the most frequent of these values; and the values themselves."""
        counter = as_categories(values)
        if categories is None:
            names = ((-count, name) for name, count in counter.items() if name is not None)
            categories = sorted(name for _, name in sorted(names)[:MAX_CATEGORIES])
        sketch = cls(categories)
        sketch.add(counter)
        return sketch

    @property
    def count(self) -> int:
        """Values that are not missing."""
        return int(self.counts.sum())

    @property
    def unseen(self) -> int:
        """Values that are none of the known categories."""
        return int(self.counts[-1])

    def empty(self) -> CategoricalSketch:
        """The same categories without values."""
        return CategoricalSketch(self.categories)

    def convert(self, values: Array) -> Counter[str | None]:
        """What `add` takes."""
        return as_categories(values)

    def add(self, counter: Counter[str | None]) -> None:
        """Add counts by category; None counts as missing."""
        for category, count in counter.items():
            if category is None:
                self.missing += count
            else:
                self.counts[self._index.get(category, -1)] += count

    def merge(self, other: FeatureSketch) -> None:
        """Add the counts of a sketch with the same categories, else raise `ValueError`."""
        if not isinstance(other, CategoricalSketch) or self.categories != other.categories:
            raise ValueError("sketches with different categories do not merge")
        self.counts += other.counts
        self.missing += other.missing


FeatureSketch: TypeAlias = NumericSketch | CategoricalSketch


class WindowSketch:
    """Every feature and the answers of one model version over some rows."""

    def __init__(self, fields: Mapping[str, FeatureSketch], rows: int = 0) -> None:
        self.fields = dict(fields)
        self.rows = rows

    def empty(self) -> WindowSketch:
        """The same bins and categories without rows."""
        return WindowSketch({name: field.empty() for name, field in self.fields.items()})

    def update(self, columns: Mapping[str, Array]) -> None:
        """Add rows: one array of shape [rows] for each field. Raises `ValueError`, having added nothing."""
        missing = [name for name in self.fields if name not in columns]
        if missing:
            raise ValueError(f"no values for {', '.join(missing)}")
        lengths = {len(columns[name]) for name in self.fields}
        if len(lengths) > 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")
        # All conversions come first: a value that does not fit must not leave half of its row behind.
        converted = {name: _convert(name, field, columns[name]) for name, field in self.fields.items()}
        for name, field in self.fields.items():
            field.add(converted[name])
        self.rows += lengths.pop() if lengths else 0

    def merge(self, other: WindowSketch) -> None:
        """Add the rows of another sketch of the same fields, else raise `ValueError`, having added nothing."""
        if self.fields.keys() != other.fields.keys():
            raise ValueError("sketches of different fields do not merge")
        for name, field in self.fields.items():
            # An empty probe meets every reason to refuse before anything has changed.
            field.empty().merge(other.fields[name].empty())
        for name, field in self.fields.items():
            field.merge(other.fields[name])
        self.rows += other.rows

    def merged(self, other: WindowSketch) -> WindowSketch:
        """A new sketch with the rows of both."""
        result = self.empty()
        result.merge(self)
        result.merge(other)
        return result


def as_numbers(values: Array) -> npt.NDArray[np.float32]:
    """Single-precision copies of numbers or of text that spells them; None becomes NaN."""
    # What single precision cannot hold becomes infinite on both sides, and infinity has a bin.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float64).astype(np.float32)


def as_categories(values: Array) -> Counter[str | None]:
    """Counts by category name; `None`, NaN and the empty string are missing and come under None.

    >>> sorted(as_categories(np.array([3.0, 3.0, 0.5])).items())
    [('0.5', 1), ('3', 2)]
    """
    if values.dtype == object:
        raw = Counter(values.tolist())
    else:
        unique, counts = np.unique(values, return_counts=True)
        raw = Counter(dict(zip(unique.tolist(), counts.tolist(), strict=True)))
    counter: Counter[str | None] = Counter()
    for value, count in raw.items():
        counter[_category(value)] += count
    return counter


def _category(value: object) -> str | None:
    if isinstance(value, float):
        if np.isnan(value):
            return None
        # Single precision for the same reason as in NumericSketch: 0.1 prints as "0.1" from FP32 and FP64 alike.
        return str(int(value)) if value.is_integer() else str(np.float32(value))
    return None if value is None or value == "" else str(value)


def _convert(name: str, field: FeatureSketch, values: Array) -> Any:
    try:
        return field.convert(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def _edges(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Upper bounds of all bins but the last: the distinct values if they are few, else the quantiles.

    Edges are values that occur, so a value with many ties fills a bin by itself instead of straddling two.
    """
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return np.empty(0, dtype=np.float32)
    distinct = np.unique(finite)
    if len(distinct) > MAX_DISCRETE_BINS:
        shares = np.arange(1, BINS) / BINS
        distinct = np.unique(np.append(np.quantile(finite, shares, method="inverted_cdf"), distinct[-1]))
    return distinct[:-1]
