"""Labels from the feedback stream, summed by version and variant."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.protocol.log_codec import MalformedEntry
from gateway.stats.performance import Performance

CLASSIFICATION = "classification"
REGRESSION = "regression"
MAX_ERROR = 1e100
"""A larger one could, squared and summed, overflow what the store can add to."""


@dataclass(frozen=True, slots=True)
class Label:
    """A prediction and what it should have been, both as text. Times are Unix seconds."""

    prediction_id: str
    version: str
    variant: str
    kind: str
    predicted: str
    score: float | None
    label: str
    predicted_at: float
    labelled_at: float


def decode_label(fields: Mapping[bytes, bytes]) -> Label:
    """A feedback entry. Raises `MalformedEntry` naming what is wrong."""
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        label = Label(
            prediction_id=text["prediction_id"],
            version=text["version"],
            variant=text["variant"],
            kind=text["kind"],
            predicted=text["predicted"],
            score=_finite(text["score"]) if text["score"] else None,
            label=text["label"],
            predicted_at=_finite(text["predicted_at"]),
            labelled_at=_finite(text["labelled_at"]),
        )
        if label.kind not in {CLASSIFICATION, REGRESSION}:
            raise ValueError(f"kind {label.kind!r}, expected {CLASSIFICATION} or {REGRESSION}")
        if label.kind == REGRESSION and abs(_error(label)) > MAX_ERROR:
            raise ValueError("the error is too large to be one")
    except KeyError as error:
        raise MalformedEntry(f"no field {error}") from error
    except ValueError as error:
        raise MalformedEntry(str(error)) from error
    return label


def tally(labels: Iterable[Label]) -> list[Performance]:
    """Sums by version and variant. Classes are compared as text."""
    sums: dict[tuple[str, str], Performance] = {}
    for label in labels:
        sum_ = sums.setdefault((label.version, label.variant), Performance(label.version, label.variant))
        if label.kind == CLASSIFICATION:
            sum_.add_class(correct=label.predicted == label.label)
        else:
            sum_.add_value(_error(label))
    return list(sums.values())


def _error(label: Label) -> float:
    return _finite(label.predicted) - _finite(label.label)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {text!r:.40}")
    return number
