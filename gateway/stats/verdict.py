"""What the collector says about one window of one model version, as a document that is stored and shown.

This file imports no statistics: whoever only reads verdicts needs none of the collector's libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Kind: TypeAlias = Literal["numeric", "categorical"]


class Status(StrEnum):
    """Of a window, from quiet to loud; the last two could not be judged."""

    OK = "ok"
    WARNING = "warning"
    ALARM = "alarm"
    INSUFFICIENT = "insufficient"
    NO_REFERENCE = "no_reference"


class State(StrEnum):
    """Of one feature in this window alone."""

    OK = "ok"
    WARNING = "warning"
    DRIFT = "drift"
    INSUFFICIENT = "insufficient"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a difference is real (`alpha`), when it matters (the rest), and when it lasts."""

    alpha: float = 0.01
    """A window's adjusted p-values below this are significant."""
    ks_warning: float = 0.10
    ks_alarm: float = 0.20
    psi_warning: float = 0.10
    psi_alarm: float = 0.25
    cramers_v_warning: float = 0.10
    cramers_v_alarm: float = 0.30
    share_warning: float = 0.01
    share_alarm: float = 0.10
    """Rise in the share of missing or unseen values, which must also have doubled."""
    persistence: int = 2
    memory: int = 3
    """An alarm is drift now, and in `persistence` of the last `memory` windows."""


DEFAULT_THRESHOLDS = Thresholds()


class FeatureVerdict(BaseModel):
    """One feature, or one of the model's answers, in one window. A statistic that does not apply is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    state: State
    n: int
    """Values in the window that are not missing."""
    missing_rate: float
    unseen_rate: float | None = None
    ks: float | None = None
    psi: float | None = None
    """With the sampling noise taken out."""
    cramers_v: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    minimum_detectable: float | None = None
    """Smallest KS distance or Cramer's V that this many values could have shown at 1 %."""
    flags: tuple[bool, ...] = ()
    """Whether it drifted in each of the last windows, this one last."""


class Verdict(BaseModel):
    """One window of one model version. Times are Unix seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str
    status: Status
    opened: float
    closed: float
    rows: int
    reference_rows: int = 0
    features: tuple[FeatureVerdict, ...] = ()
    reasons: tuple[str, ...] = ()
    """One line each, for a person."""

    def to_json(self) -> bytes:
        """The stored form."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Verdict:
        """The inverse of `to_json`. Raises `ValueError` on anything else."""
        return cls.model_validate_json(data)

    def flags_of(self, feature: str) -> tuple[bool, ...]:
        """The feature's history, empty if this verdict does not know it."""
        return next((f.flags for f in self.features if f.name == feature), ())
