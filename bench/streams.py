"""Several open loops at once, out of one process, so that two loads take no more of the machine than one of both.

`python -m bench.streams FILE --seconds 5` prints one result for each stream of the file, as `bench.openloop` does for
one. With `--until-closed` it stops earlier when its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from bench.openloop import DRAIN_SECONDS, Generator, OpenResult, Plan
from bench.places import ROOT, WORK, relative

START_SECONDS = 30.0
LONGEST_SECONDS = 600.0
"""Of a load that goes on until it is told to stop."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests with one body at one address."""

    url: str
    body: str
    """Its file, in the repository's root."""
    rate: float
    connections: int = 64
    also: tuple[str, ...] = ()
    """As `bench.openloop.Plan` has it."""


def plans(streams: list[Stream], seconds: float) -> list[Plan]:
    """Each with a seed of its own: their requests are independent of each other."""
    return [
        Plan(one.url, (ROOT / one.body).read_bytes(), one.rate, seconds, one.connections, tuple(one.also), seed=seed)
        for seed, one in enumerate(streams)
    ]


async def send(planned: list[Plan], *, until_closed: bool = False) -> list[OpenResult]:
    """All of them at once. Raises `OSError` if nothing listens."""
    generators = [Generator(plan) for plan in planned]
    if until_closed:
        loop = asyncio.get_running_loop()

        def on_input() -> None:
            if not os.read(sys.stdin.fileno(), 1024):
                loop.remove_reader(sys.stdin)
                for generator in generators:
                    generator.stop()

        loop.add_reader(sys.stdin, on_input)
    return await asyncio.gather(*(generator.run() for generator in generators))


def run(streams: list[Stream], seconds: float) -> list[dict[str, Any]]:
    """For so many seconds, in a process of its own."""
    finished = subprocess.run(
        _command(streams, seconds),
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=seconds + DRAIN_SECONDS + START_SECONDS,
    )
    return _results(finished.returncode, finished.stdout, finished.stderr)


@contextmanager
def running(streams: list[Stream], results: list[dict[str, Any]]) -> Iterator[None]:
    """While the block runs; `results` has one for each stream afterwards."""
    process = subprocess.Popen(
        [*_command(streams, LONGEST_SECONDS), "--until-closed"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield
        # Closes its input.
        output, errors = process.communicate(timeout=DRAIN_SECONDS + START_SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    results += _results(process.returncode, output, errors)


def _command(streams: list[Stream], seconds: float) -> list[str]:
    file = WORK / "requests" / "streams.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps([asdict(one) for one in streams]))
    return [sys.executable, "-m", "bench.streams", relative(file), "--seconds", f"{seconds:g}"]


def _results(status: int, output: bytes, errors: bytes) -> list[dict[str, Any]]:
    if status:
        raise RuntimeError(f"bench.streams failed:\n{errors.decode('utf-8', 'replace')}")
    results: list[dict[str, Any]] = orjson.loads(output)
    return results


def main() -> None:
    """Print the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description="Several loads at constant rates.")
    parser.add_argument("streams", type=Path, help="JSON: a list of objects with url, body, rate, connections, also.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--until-closed", action="store_true", help="Stop when standard input is closed.")
    options = parser.parse_args()
    planned = plans([Stream(**one) for one in orjson.loads(options.streams.read_bytes())], options.seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(send(planned, until_closed=options.until_closed))
    print(orjson.dumps([asdict(one) for one in results]).decode())


if __name__ == "__main__":
    main()
