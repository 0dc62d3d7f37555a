"""What a run writes down, and prints, while it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.environments import PeerUnavailable
from bench.results import Measurement, Results


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run takes."""

    rounds: int
    seconds: float


class Recorder:
    """Into the results, and on the terminal."""

    def __init__(self, results: Results, say: Callable[[str], None]) -> None:
        self._results = results
        self.say = say

    @property
    def commands(self) -> dict[str, str]:
        """How each server and each load generator was started."""
        return self._results.commands

    def of(self, scenario: str) -> ScenarioRecorder:
        """For one scenario."""
        return ScenarioRecorder(self, scenario)

    def add(self, measured: Measurement) -> None:
        """One measurement."""
        self._results.rounds.append(measured)
        shown = {name: value for name, value in measured.values.items() if name in SHOWN and value}
        figures = "  ".join(f"{SHOWN[name]} {value:,.1f}" for name, value in shown.items())
        self.say(f"{measured.scenario:<16} round {measured.round}  {measured.server:<14} {figures}")

    def unavailable(self, what: str, error: PeerUnavailable) -> None:
        """Why there is no measurement."""
        self._results.unavailable[what] = str(error)
        self.say(f"{what}: {error}")


class ScenarioRecorder:
    """What is measured in one scenario."""

    def __init__(self, recorder: Recorder, scenario: str) -> None:
        self._recorder = recorder
        self.scenario = scenario

    def add(self, server: str, number: int, values: dict[str, float]) -> None:
        """One round of what stands where elsewhere a server does: a model, a setting or a load."""
        self._recorder.add(Measurement(self.scenario, server, number, values))

    def command(self, what: str, command: str) -> None:
        """How something was started; the first time counts."""
        self._recorder.commands.setdefault(f"{what} in {self.scenario}", command)


SHOWN = {
    "requests_per_second": "requests/s",
    "rows_per_second": "rows/s",
    "cpu_us": "CPU µs",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "capacity_per_second": "capacity/s",
    "goodput_share": "goodput share",
    "refusal_p99_us": "refusal p99 µs",
    "idle_core_percent": "% of a core",
    "refused": "refused",
    "lost": "lost",
}
"""What is printed while it runs; results hold all of it."""
