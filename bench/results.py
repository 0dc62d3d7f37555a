"""What was measured, round by round, and the medians taken from it. Results are plain JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

IN_PROCESS = "in-process"
"""Stands where a server's name would: the same work without any server."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server in one round of one scenario. Units are in the names of the values."""

    scenario: str
    server: str
    round: int
    values: dict[str, float]


@dataclass(slots=True)
class Results:
    """Everything that a run leaves behind."""

    started: str
    command: str
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    """How each server and each load generator was started."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """By server, or server and scenario: why there is no measurement."""
    rounds: list[Measurement] = field(default_factory=list)
    thresholds: list[dict[str, Any]] = field(default_factory=list)

    def of(self, scenario: str, server: str, value: str) -> dict[int, float]:
        """One value by round."""
        return {
            one.round: one.values[value]
            for one in self.rounds
            if (one.scenario, one.server) == (scenario, server) and value in one.values
        }

    def median(self, scenario: str, server: str, value: str) -> float | None:
        """Over the rounds; None if it was not measured."""
        values = self.of(scenario, server, value)
        return statistics.median(values.values()) if values else None

    def paired(
        self, scenario: str, value: str, ours: str, theirs: str, compare: Callable[[float, float], float]
    ) -> float | None:
        """Median of what `compare` says to our value and theirs of the same round.

        Two servers measured within the same seconds share the machine's moods, which a ratio of medians does not use.
        """
        left, right = self.of(scenario, ours, value), self.of(scenario, theirs, value)
        compared = [compare(left[number], right[number]) for number in left.keys() & right.keys()]
        return statistics.median(compared) if compared else None

    def ratio(self, scenario: str, value: str, ours: str, theirs: str) -> float | None:
        """Median of the ratios of the rounds."""
        return self.paired(scenario, value, ours, theirs, lambda left, right: left / right)

    def servers(self, scenario: str) -> list[str]:
        """Those measured in a scenario, in order of appearance."""
        return list(dict.fromkeys(one.server for one in self.rounds if one.scenario == scenario))

    def scenarios(self) -> list[str]:
        """Those measured, in order of appearance."""
        return list(dict.fromkeys(one.scenario for one in self.rounds))

    def continued(self, piece: Results, scenarios: Collection[str]) -> Results:
        """These with room for `piece`, a run of `scenarios` that is about to begin; what is known of them is dropped.

        Raises `ValueError` if the two cannot stand beside each other: another commit, or another machine.
        """
        for what, ours, theirs in (
            ("commit", self.versions["commit"], piece.versions["commit"]),
            *((fact, self.machine[fact], piece.machine[fact]) for fact in ("cpu", "cores", "kernel", "python")),
        ):
            if ours != theirs:
                raise ValueError(f"{what} is {theirs} now and was {ours}; begin another result")
        self.rounds = [one for one in self.rounds if one.scenario not in scenarios]
        self.unavailable = {what: why for what, why in self.unavailable.items() if what not in scenarios}
        self.command = f"{self.command}; {piece.command}"
        return self

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote."""
        document = orjson.loads(path.read_bytes())
        rounds = [Measurement(**one) for one in document.pop("rounds")]
        return cls(**document, rounds=rounds)
