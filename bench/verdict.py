"""One thing that must be reached, and what was."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table."""

    what: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str
    measured: float | None
    """None if the run did not measure it."""

    @property
    def is_reached(self) -> bool | None:
        """None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.bound == "at most" else self.measured >= self.limit

    def document(self) -> dict[str, Any]:
        """For the results."""
        return {**asdict(self), "is_reached": self.is_reached}
