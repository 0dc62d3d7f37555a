"""One measurement: load on one server, and what the server spent on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bench import model, wrk
from bench.cpu import Usage, usage
from bench.environments import PeerUnavailable
from bench.places import ROOT, relative
from bench.scenarios import IDLE_SECONDS, OPEN_CONNECTIONS, Request, Scenario
from bench.servers import Running, ask, read_answer

WARM_UP_SECONDS = 1.0
FIRST_ANSWER_SECONDS = 60.0
OVERLOAD_FACTOR = 2.0
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
TRIAL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of a server over a piece of work."""

    tree: float
    own: float
    store: float | None
    """Of the store beside it; None if it has none."""


class Meter:
    """Reads a server's CPU time before and after."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._before = self._read()

    def spent(self) -> Spent:
        """Since this meter was made. Raises `PeerUnavailable` if the server has ended."""
        after, store = self._read()
        before, store_before = self._before
        return Spent(
            after.tree_seconds - before.tree_seconds,
            after.own_seconds - before.own_seconds,
            None if store is None or store_before is None else store - store_before,
        )

    def _read(self) -> tuple[Usage, float | None]:
        store = self._running.store_pid
        try:
            return usage(self._running.pid), usage(store).tree_seconds if store else None
        except ProcessLookupError as error:
            raise PeerUnavailable(f"{self._running.kind.name} has ended under load") from error


def verify(running: Running, scenario: Scenario, request: Request) -> None:
    """Wait for the first answer and hold it against the model's own. Raises `PeerUnavailable` with what is wrong."""
    deadline = time.monotonic() + FIRST_ANSWER_SECONDS
    while True:
        try:
            answer = read_answer(running.kind, ask(running, request.body, request.headers))
            break
        except (PeerUnavailable, OSError) as error:
            # Some servers listen before their model is loaded. What the gateway says when it is ready is final.
            if running.kind.is_gateway or time.monotonic() > deadline:
                raise PeerUnavailable(str(error)) from error
            time.sleep(0.5)
    wanted = model.expected(scenario.model, scenario.rows).ravel()
    if answer is not None and not np.allclose(answer, wanted, rtol=1e-3, atol=1e-5):
        raise PeerUnavailable(f"answers {answer[:4]} where the model says {wanted[:4].tolist()}")


def closed(running: Running, scenario: Scenario, request: Request, seconds: float) -> dict[str, float]:
    """As fast as the connections allow."""
    wrk.run(running.url, scenario.connections, WARM_UP_SECONDS, request.script)
    meter = Meter(running)
    seen = wrk.run(running.url, scenario.connections, seconds, request.script)
    answered = seen.requests - seen.refused
    if answered == 0:
        raise PeerUnavailable(f"answered none of the requests; {seen.refused} refused, {seen.lost} lost")
    rate = answered / seen.seconds
    return {
        **_per_request(meter.spent(), answered),
        "requests_per_second": rate,
        "rows_per_second": rate * scenario.rows,
        "p50_us": seen.p50_us,
        "p90_us": seen.p90_us,
        "p99_us": seen.p99_us,
        "p999_us": seen.p999_us,
        "refused": seen.refused,
        "lost": seen.lost,
        "rss_bytes": usage(running.pid).tree_rss_bytes,
    }


def open_loop(running: Running, scenario: Scenario, request: Request, seconds: float) -> dict[str, float]:
    """At the scenario's rate, whatever the server does."""
    _open(running, request, scenario.rate, WARM_UP_SECONDS)
    meter = Meter(running)
    seen = _open(running, request, scenario.rate, seconds)
    # A server that answered nothing has no latency, and no cost of an answer.
    costs = {**_per_request(meter.spent(), seen["answered"]), **seen["latency"]} if seen["answered"] else {}
    return {
        **costs,
        "requests_per_second": seen["goodput"],
        "refused": seen["refused"],
        "lost": seen["lost"] + seen["failed"] + seen["unsent"] + seen["unanswered"],
        "send_lag_p99_us": seen["send_lag"]["p99_us"],
        "generator_cpu_us": seen["generator_cpu_us"],
    }


def overload(running: Running, scenario: Scenario, request: Request, seconds: float) -> dict[str, float]:
    """Find the capacity in a closed loop, then offer twice as much."""
    wrk.run(running.url, scenario.connections, WARM_UP_SECONDS, request.script)
    peak = wrk.run(running.url, scenario.connections, seconds, request.script)
    capacity = (peak.requests - peak.refused) / peak.seconds
    before = usage(running.pid)
    seen = _open(running, request, OVERLOAD_FACTOR * capacity, seconds)
    after = usage(running.pid)
    refusals = (
        {}
        if not seen["refused"]
        else {
            "retry_after_share": seen["refused_with_retry_after"] / seen["refused"],
            "refusal_p50_us": seen["refusal_latency"]["p50_us"],
            "refusal_p99_us": seen["refusal_latency"]["p99_us"],
        }
    )
    return {
        **refusals,
        "capacity_per_second": capacity,
        "offered_per_second": seen["offered"] / seconds,
        "goodput_per_second": seen["goodput"],
        "goodput_share": seen["goodput"] / capacity,
        "refused": seen["refused"],
        "p50_us": seen["latency"]["p50_us"],
        "p99_us": seen["latency"]["p99_us"],
        "failed": seen["failed"],
        "lost": seen["lost"],
        "unsent": seen["unsent"],
        "unanswered": seen["unanswered"],
        "send_lag_p99_us": seen["send_lag"]["p99_us"],
        "rss_before_bytes": before.tree_rss_bytes,
        "rss_after_bytes": after.tree_rss_bytes,
        "rss_growth": after.tree_rss_bytes / before.tree_rss_bytes,
    }


def idle(servers: list[Running]) -> dict[str, dict[str, float]]:
    """CPU of servers that nobody asks anything, in per cent of a core, all of them over the same seconds."""
    meters = {running.kind.name: Meter(running) for running in servers}
    start = time.monotonic()
    time.sleep(IDLE_SECONDS)
    elapsed = time.monotonic() - start
    return {name: {"idle_core_percent": meter.spent().tree / elapsed * 100} for name, meter in meters.items()}


def in_process(scenario: Scenario, request: Request, seconds: float) -> dict[str, float]:
    """The scenario's work without a server: decoding where that dominates, else running the model."""
    if scenario.model == "image":
        part = "copy" if scenario.is_binary else "decode"
        measured = _python("bench.inprocess", part, relative(request.body), "--seconds", f"{seconds:g}")
        return {"cpu_us": measured["cpu_us"], "p50_us": measured["p50_us"]}
    if not scenario.uses_all_cores:
        measured = _run_model(scenario, 1, seconds)
        return {
            "cpu_us": measured["cpu_us"],
            "p50_us": measured["p50_us"],
            "rows_per_second": measured["rows_per_second"],
        }
    # Find the best shape quickly, then measure it as long as a server: the best of many short runs is mostly luck.
    shapes = [(batch, spin) for batch in BATCH_SIZES for spin in ((), ("--spin",))]
    tried = {shape: _run_model(scenario, shape[0], TRIAL_SECONDS, *shape[1])["rows_per_second"] for shape in shapes}
    batch, spin = max(tried, key=lambda shape: tried[shape])
    measured = _run_model(scenario, batch, seconds, *spin)
    best = {name: measured[name] for name in ("p50_us", "rows_per_second", "batch")}
    return {**best, "cpu_us": measured["cpu_us"] / batch}


Measure = Callable[[Running, Scenario, Request, float], dict[str, float]]
MEASURES: dict[str, Measure] = {"closed": closed, "open": open_loop, "overload": overload}


def threads(scenario: Scenario) -> int:
    """Of ONNX Runtime, the same in every server and in the process without one."""
    return (os.cpu_count() or 1) if scenario.uses_all_cores else 1


def _run_model(scenario: Scenario, batch: int, seconds: float, *options: str) -> dict[str, float]:
    sizes = ("--batch", str(batch), "--threads", str(threads(scenario)), "--seconds", f"{seconds:g}")
    return _python("bench.inprocess", "run", scenario.model, *sizes, *options)


def load_command(url: str, scenario: Scenario, request: Request, seconds: float) -> str:
    """As it can be pasted; at twice the capacity the rate is another in each round."""
    if scenario.load == "closed":
        return " ".join(wrk.command(url, scenario.connections, seconds, request.script))
    rate = f"{scenario.rate:g}" if scenario.rate else "RATE"
    return " ".join(["python", "-m", "bench.openloop", *_open_arguments(url, request, rate, seconds)])


def _open(running: Running, request: Request, rate: float, seconds: float) -> dict[str, Any]:
    return _python("bench.openloop", *_open_arguments(running.url, request, f"{rate:g}", seconds))


def _open_arguments(url: str, request: Request, rate: str, seconds: float) -> list[str]:
    options = ["--rate", rate, "--seconds", f"{seconds:g}", "--connections", str(OPEN_CONNECTIONS)]
    return [url, "--body", relative(request.body), *options]


def _python(module: str, *arguments: str) -> dict[str, Any]:
    """Each in a process of its own, so that its CPU time is its own and its loop is not disturbed."""
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    if finished.returncode:
        raise RuntimeError(f"{module} failed:\n{finished.stderr}")
    document: dict[str, Any] = orjson.loads(finished.stdout)
    return document


def _per_request(spent: Spent, requests: int) -> dict[str, float]:
    per_request = 1e6 / requests
    values = {"cpu_us": spent.tree * per_request, "own_cpu_us": spent.own * per_request}
    return values if spent.store is None else {**values, "store_cpu_us": spent.store * per_request}
