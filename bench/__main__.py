"""`make bench`: measure the gateway and its peers on this machine; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import uvloop
from rich.console import Console

from bench import machine, model, plot, profile, thresholds, wrk
from bench.places import MODELS, RESULTS, ROOT, WORK
from bench.recording import Length, Recorder
from bench.report import markdown, print_report
from bench.results import Results
from bench.runner import Runner
from bench.scenarios import QUICK, QUICK_SERVERS, SCENARIOS, Scenario
from bench.servers import KINDS, Kind

FULL = Length(rounds=3, seconds=5)
SHORT = Length(rounds=1, seconds=2)
PROFILE_ROUNDS = 15
INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C has ended."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WIDTH = 120
"""Of lines in a file or a pipe."""


def main() -> int:
    """Exit code 0 if it ran to its end, whether or not every peer started and every threshold was reached."""
    options = _options()
    os.chdir(ROOT)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if options.show:
        print_report(Results.load(options.show), console)
        return 0
    if options.profile:
        return _profile(options, console)
    scenarios, kinds, length = _choice(options)
    try:
        wrk.version()
    except wrk.WrkMissing as error:
        console.print(str(error))
        return 1
    started = datetime.now(UTC)
    results = _results(started, machine.versions([kind.name for kind in kinds]))
    if options.into and options.into.exists():
        try:
            results = Results.load(options.into).continued(results, {one.name for one in scenarios})
        except ValueError as error:
            console.print(f"{options.into}: {error}")
            return 1
    console.print("training and fetching the models ...")
    model.prepare()
    is_partial = bool(options.quick or options.peers or options.scenarios)
    try:
        recorder = Recorder(results, lambda line: console.print(line, markup=False, soft_wrap=True))
        Runner(recorder, length).run(scenarios, kinds)
    except KeyboardInterrupt:
        console.print("interrupted; nothing is stored; what was measured so far:")
        print_report(results, console)
        return INTERRUPTED
    results.thresholds = [one.document() for one in thresholds.evaluate(results)]
    print_report(results, console)
    _store(results, options, started, console, is_partial=is_partial)
    return 0


def _profile(options: argparse.Namespace, console: Console) -> int:
    started = datetime.now(UTC)
    results = _results(started, machine.own_versions())
    model.prepare()
    console.print("profiling, a minute at most ...")
    try:
        body, rounds = model.oip_body(profile.MODEL, 1), options.rounds or PROFILE_ROUNDS
        uvloop.run(profile.profile(MODELS, body, rounds, profile.TURNS, results.rounds.append))
    except KeyboardInterrupt:
        console.print("interrupted; nothing is stored")
        return INTERRUPTED
    print_report(results, console)
    file = _file(options, started, "profile", is_published=options.publish)
    results.save(file)
    console.print(f"stored in {file.relative_to(ROOT)}")
    return 0


def _results(started: datetime, versions: dict[str, Any]) -> Results:
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    return Results(started.isoformat(timespec="seconds"), command, machine.describe(), versions)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the gateway and its peers.")
    parser.add_argument("--quick", action="store_true", help="One short round; gateway, echo and prototype only.")
    parser.add_argument("--profile", action="store_true", help="Where the CPU of a request goes, in process.")
    parser.add_argument("--peers", help=f"Comma-separated; besides the gateway, of: {', '.join(KINDS)}.")
    parser.add_argument("--scenarios", help=f"Comma-separated, of: {', '.join(SCENARIOS)}.")
    parser.add_argument("--rounds", type=int, help="Rounds of each scenario.")
    parser.add_argument("--seconds", type=float, help="Length of one measurement.")
    parser.add_argument("--label", default="", help="Added to the name of the result file.")
    parser.add_argument("--publish", action="store_true", help="Keep a partial run or a profile in bench/results.")
    parser.add_argument(
        "--into", type=Path, help="Add to a stored result of the same commit, or begin it: a run in several pieces."
    )
    parser.add_argument("--show", type=Path, help="Print a stored result again; measure nothing.")
    options = parser.parse_args()
    if options.profile and (options.quick or options.peers or options.scenarios or options.seconds):
        parser.error("--profile has scenarios of its own: leave out --quick, --peers, --scenarios and --seconds")
    if options.into and (options.publish or options.label or options.profile):
        parser.error("--into says where the result goes: leave --publish, --label and --profile out")
    return options


def _choice(options: argparse.Namespace) -> tuple[list[Scenario], list[Kind], Length]:
    scenario_names = _names(options.scenarios, SCENARIOS, QUICK if options.quick else tuple(SCENARIOS))
    peer_names = _names(options.peers, KINDS, QUICK_SERVERS if options.quick else tuple(KINDS))
    length = SHORT if options.quick else FULL
    length = Length(options.rounds or length.rounds, options.seconds or length.seconds)
    scenarios = [one for name, one in SCENARIOS.items() if name in scenario_names]
    return scenarios, [kind for name, kind in KINDS.items() if name == "gateway" or name in peer_names], length


def _names(
    given: str | None, known: dict[str, Scenario] | dict[str, Kind], default: tuple[str, ...]
) -> tuple[str, ...]:
    if given is None:
        return default
    names = tuple(given.split(","))
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def _store(
    results: Results, options: argparse.Namespace, started: datetime, console: Console, *, is_partial: bool
) -> None:
    """Only a full run, or one that is asked to, replaces the published numbers; without its scenario, no picture."""
    if options.into:
        results.save(options.into)
        console.print(f"stored in {options.into}")
        return
    is_published = options.publish or not is_partial
    name = "quick" if options.quick else "partial" if is_partial else "full"
    file = _file(options, started, name, is_published=is_published)
    results.save(file)
    picture = file.with_suffix(".svg")
    if plot.SCENARIO in results.scenarios():
        picture.write_text(plot.svg(results), "utf-8")
        if is_published:
            (RESULTS / "README.md").write_text(markdown(results, file, picture), "utf-8")
    console.print(f"stored in {file.relative_to(ROOT)}")


def _file(options: argparse.Namespace, started: datetime, name: str, *, is_published: bool) -> Path:
    label = f"-{options.label}" if options.label else ""
    return (RESULTS if is_published else WORK / "results") / f"{started:%Y-%m-%d}-{name}{label}.json"


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop measuring; from here on nothing keeps the servers from being stopped in order."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
