"""`python -m bench.propagation`: how long a weight change takes to be in force in several gateways over one store.

A change is written through each gateway in turn. It counts from before the request is sent until a gateway names its
revision among the routes in force, which is what the gateway's next prediction goes by.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

from bench import machine
from bench.places import RESULTS, ROOT
from bench.results import Measurement, Results
from bench.running import own_gateway
from gateway.opsclient import OpsClient
from gateway.state.embedded import EmbeddedStore

ROUTE = "employment"
POLL_SECONDS = 0.001
TIMEOUT_SECONDS = 10.0
LIMIT_MS = 200.0


def main() -> None:
    """Measure, print, and store it."""
    options = _options()
    os.chdir(ROOT)
    started = datetime.now(UTC)
    command = f"python -m bench.propagation --gateways {options.gateways} --changes {options.changes}"
    results = Results(started.isoformat(timespec="seconds"), command, machine.describe(), {"commit": machine.commit()})
    milliseconds = np.array(_measure(options.gateways, options.changes)) * 1000
    values = {
        "gateways": float(options.gateways),
        "changes": float(options.changes),
        **{f"p{share}_ms": round(float(np.percentile(milliseconds, share)), 2) for share in (50, 90, 99)},
        "max_ms": round(float(milliseconds.max()), 2),
    }
    results.rounds.append(Measurement("propagation", "gateway", 1, values))
    is_reached = values["p99_ms"] < LIMIT_MS
    limit = {"what": "a weight change in all gateways: p99", "limit": LIMIT_MS, "measured": values["p99_ms"]}
    results.thresholds.append({**limit, "is_reached": is_reached})
    file = RESULTS / f"{started:%Y-%m-%d}-propagation.json"
    results.save(file)
    print(values, "reached" if is_reached else "NOT REACHED", f"stored in {file.relative_to(ROOT)}", sep="\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.propagation", description=__doc__)
    parser.add_argument("--gateways", type=int, default=4, help="Processes over one store.")
    parser.add_argument("--changes", type=int, default=200, help="How many are measured.")
    return parser.parse_args()


def _measure(gateways: int, changes: int) -> list[float]:
    """Seconds until a change was in force, for each change and gateway."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-"))
        store = EmbeddedStore(Path(folder))
        store.start()
        stack.callback(store.stop)
        shared = ("--no-collector", "--redis-url", store.url)
        urls = [stack.enter_context(own_gateway(*shared)).ops for _ in range(gateways)]
        watchers = [stack.enter_context(httpx.Client(base_url=url, trust_env=False)) for url in urls]
        pool = stack.enter_context(ThreadPoolExecutor(gateways))
        seconds: list[float] = []
        for number in range(changes):
            editor = OpsClient(urls[number % gateways], None)
            _, tag = editor.route(ROUTE)
            began = time.monotonic()
            reached = [pool.submit(_reached, watcher, number + 1) for watcher in watchers]
            editor.put_route(ROUTE, _split(number % 101), tag, "bench")
            seconds += [future.result() - began for future in reached]
        return seconds


def _split(canary: int) -> dict[str, object]:
    variants = [("stable", "1", 100 - canary), ("canary", "2", canary)]
    return {"variants": [dict(zip(("name", "version", "weight"), variant, strict=True)) for variant in variants]}


def _reached(watcher: httpx.Client, revision: int) -> float:
    """When the gateway had it in force. Raises `TimeoutError`."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        routes = watcher.get("/admin/routes").json()["routes"]
        if any(route["name"] == ROUTE and route["revision"] >= revision for route in routes):
            return time.monotonic()
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"revision {revision} did not reach {watcher.base_url} in {TIMEOUT_SECONDS:g} s")


if __name__ == "__main__":
    main()
