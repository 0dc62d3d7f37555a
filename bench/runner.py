"""Start what a set of scenarios needs, measure in turns, stop it.

The servers of a scenario are measured A B C, A B C, ...: what the machine does meanwhile hits all of them alike.
Servers that burn CPU while nobody asks them anything are started alone, after the others have stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from bench import measure
from bench.environments import PeerUnavailable
from bench.results import IN_PROCESS, Measurement, Results
from bench.scenarios import Request, Scenario, request
from bench.servers import Kind, Running, serve


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run takes."""

    rounds: int
    seconds: float


class Runner:
    """Runs scenarios and collects what they say."""

    def __init__(self, results: Results, length: Length, say: Callable[[str], None]) -> None:
        self._results = results
        self._length = length
        self._say = say

    def run(self, scenarios: list[Scenario], kinds: list[Kind]) -> None:
        """All scenarios; those on the same model with the same threads share their servers."""
        for (model, threads), group in itertools.groupby(scenarios, lambda one: (one.model, measure.threads(one))):
            members = list(group)
            wanted = [kind for kind in kinds if any(one.includes(kind.name, kind.protocol) for one in members)]
            self._run_fleet(members, [kind for kind in wanted if not kind.is_alone], model, threads)
            for kind in wanted:
                if kind.is_alone:
                    self._run_fleet(members, [kind], model, threads)

    def _run_fleet(self, scenarios: list[Scenario], kinds: list[Kind], model: str, threads: int) -> None:
        is_alone = any(kind.is_alone for kind in kinds)
        with ExitStack() as stack:
            fleet = list(self._start(stack, kinds, model, threads))
            for scenario in scenarios:
                taking_part = [one for one in fleet if scenario.includes(one.kind.name, one.kind.protocol)]
                if scenario.load == "idle":
                    self._idle(scenario, taking_part)
                else:
                    self._rounds(scenario, taking_part, with_baseline=scenario.has_baseline and not is_alone)

    def _start(self, stack: ExitStack, kinds: list[Kind], model: str, threads: int) -> Iterator[Running]:
        for kind in kinds:
            self._say(f"starting {kind.name} on {model}, {threads} thread(s)")
            try:
                running = stack.enter_context(serve(kind, model, threads))
            except PeerUnavailable as error:
                self._unavailable(kind.name, error)
                continue
            self._results.commands[f"{kind.name} on {model}"] = running.command
            yield running

    def _rounds(self, scenario: Scenario, fleet: list[Running], *, with_baseline: bool) -> None:
        ready = list(self._verified(scenario, fleet))
        for running, sent in ready:
            load = measure.load_command(running.url, scenario, sent, self._length.seconds)
            self._results.commands.setdefault(f"load in {scenario.name}", load)
        for number in range(1, self._length.rounds + 1):
            if with_baseline:
                values = measure.in_process(scenario, request(scenario, "oip"), self._length.seconds)
                self._record(Measurement(scenario.name, IN_PROCESS, number, values))
            for running, sent in list(ready):
                try:
                    values = measure.MEASURES[scenario.load](running, scenario, sent, self._length.seconds)
                except PeerUnavailable as error:
                    self._unavailable(f"{running.kind.name} in {scenario.name}", error)
                    ready.remove((running, sent))
                    continue
                self._record(Measurement(scenario.name, running.kind.name, number, values))

    def _verified(self, scenario: Scenario, fleet: list[Running]) -> Iterator[tuple[Running, Request]]:
        for running in fleet:
            sent = request(scenario, running.kind.protocol)
            try:
                measure.verify(running, scenario, sent)
            except PeerUnavailable as error:
                self._unavailable(f"{running.kind.name} in {scenario.name}", error)
                continue
            yield running, sent

    def _idle(self, scenario: Scenario, fleet: list[Running]) -> None:
        for name, values in measure.idle(fleet).items():
            self._record(Measurement(scenario.name, name, 1, values))

    def _record(self, measured: Measurement) -> None:
        self._results.rounds.append(measured)
        shown = {name: value for name, value in measured.values.items() if name in SHOWN and value}
        figures = "  ".join(f"{SHOWN[name]} {value:,.1f}" for name, value in shown.items())
        self._say(f"{measured.scenario:<16} round {measured.round}  {measured.server:<14} {figures}")

    def _unavailable(self, what: str, error: PeerUnavailable) -> None:
        self._results.unavailable[what] = str(error)
        self._say(f"{what}: {error}")


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
