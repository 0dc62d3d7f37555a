"""Start what a set of scenarios needs, measure in turns, stop it.

The servers of a scenario are measured A B C, A B C, ...: what the machine does meanwhile hits all of them alike.
Servers that burn CPU while nobody asks them anything are started alone, after the others have stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

from bench import measure
from bench.environments import PeerUnavailable
from bench.probes import PROBES
from bench.recording import Length, Recorder
from bench.results import IN_PROCESS, Measurement
from bench.scenarios import Request, Scenario, request
from bench.servers import Kind, Running, serve


class Runner:
    """Runs scenarios and collects what they say."""

    def __init__(self, recorder: Recorder, length: Length) -> None:
        self._recorder = recorder
        self._length = length

    def run(self, scenarios: list[Scenario], kinds: list[Kind]) -> None:
        """All scenarios; those on the same model with the same threads share their servers."""
        for scenario in scenarios:
            if scenario.load == "runtime":
                self._probe(scenario)
        fleets = [one for one in scenarios if one.load != "runtime"]
        for (model, threads), group in itertools.groupby(fleets, lambda one: (one.model, measure.threads(one))):
            members = list(group)
            wanted = [kind for kind in kinds if any(one.includes(kind.name, kind.protocol) for one in members)]
            self._run_fleet(members, [kind for kind in wanted if not kind.is_alone], model, threads)
            for kind in wanted:
                if kind.is_alone:
                    self._run_fleet(members, [kind], model, threads)

    def _probe(self, scenario: Scenario) -> None:
        try:
            PROBES[scenario.name](self._recorder.of(scenario.name), self._length)
        except PeerUnavailable as error:
            self._recorder.unavailable(scenario.name, error)

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
            self._recorder.say(f"starting {kind.name} on {model}, {threads} thread(s)")
            try:
                running = stack.enter_context(serve(kind, model, threads))
            except PeerUnavailable as error:
                self._recorder.unavailable(kind.name, error)
                continue
            self._recorder.commands[f"{kind.name} on {model}"] = running.command
            yield running

    def _rounds(self, scenario: Scenario, fleet: list[Running], *, with_baseline: bool) -> None:
        ready = list(self._verified(scenario, fleet))
        for running, sent in ready:
            load = measure.load_command(running.url, scenario, sent, self._length.seconds)
            self._recorder.commands.setdefault(f"load in {scenario.name}", load)
        for number in range(1, self._length.rounds + 1):
            if with_baseline:
                values = measure.in_process(scenario, request(scenario, "oip"), self._length.seconds)
                self._recorder.add(Measurement(scenario.name, IN_PROCESS, number, values))
            for running, sent in list(ready):
                try:
                    values = measure.MEASURES[scenario.load](running, scenario, sent, self._length.seconds)
                except PeerUnavailable as error:
                    self._recorder.unavailable(f"{running.kind.name} in {scenario.name}", error)
                    ready.remove((running, sent))
                    continue
                self._recorder.add(Measurement(scenario.name, running.kind.name, number, values))

    def _verified(self, scenario: Scenario, fleet: list[Running]) -> Iterator[tuple[Running, Request]]:
        for running in fleet:
            sent = request(scenario, running.kind.protocol)
            try:
                measure.verify(running, scenario, sent)
            except PeerUnavailable as error:
                self._recorder.unavailable(f"{running.kind.name} in {scenario.name}", error)
                continue
            yield running, sent

    def _idle(self, scenario: Scenario, fleet: list[Running]) -> None:
        for name, values in measure.idle(fleet).items():
            self._recorder.add(Measurement(scenario.name, name, 1, values))
