"""How well a variant did, as far as labels tell: sums that add up across collectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson


@dataclass(slots=True)
class Performance:
    """Labelled predictions of one version under one variant.

    Classification counts `correct`; regression counts `valued` and sums its errors.
    """

    version: str
    variant: str
    labelled: int = 0
    correct: int = 0
    valued: int = 0
    absolute_error: float = 0.0
    squared_error: float = 0.0

    def add_class(self, *, correct: bool) -> None:
        """A classification and its label."""
        self.labelled += 1
        self.correct += correct

    def add_value(self, error: float) -> None:
        """A regression: its answer less its label."""
        self.labelled += 1
        self.valued += 1
        self.absolute_error += abs(error)
        self.squared_error += error * error

    @property
    def accuracy(self) -> float | None:
        """Share of correct classifications; None without any."""
        classified = self.labelled - self.valued
        return self.correct / classified if classified else None

    @property
    def mean_absolute_error(self) -> float | None:
        """Of regressions; None without any."""
        return self.absolute_error / self.valued if self.valued else None

    @property
    def root_mean_squared_error(self) -> float | None:
        """Of regressions; None without any."""
        return math.sqrt(self.squared_error / self.valued) if self.valued else None

    def to_fields(self) -> Iterator[tuple[bytes, float]]:
        """Hash fields and what to add to them. A field's name is a JSON array, so any name can stand in it."""
        sums = {
            "labelled": self.labelled,
            "correct": self.correct,
            "valued": self.valued,
            "absolute_error": self.absolute_error,
            "squared_error": self.squared_error,
        }
        for name, amount in sums.items():
            if amount:
                yield orjson.dumps([self.version, self.variant, name]), amount


def performance_from_fields(stored: Mapping[bytes, bytes]) -> list[Performance]:
    """The records in a hash of such fields, by version and variant."""
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for field, value in stored.items():
        version, variant, name = orjson.loads(field)
        sums.setdefault((version, variant), {})[name] = float(value)
    return [
        Performance(
            version,
            variant,
            labelled=int(of.get("labelled", 0)),
            correct=int(of.get("correct", 0)),
            valued=int(of.get("valued", 0)),
            absolute_error=of.get("absolute_error", 0.0),
            squared_error=of.get("squared_error", 0.0),
        )
        for (version, variant), of in sorted(sums.items())
    ]
