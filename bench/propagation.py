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
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import orjson

from bench import machine
from bench.places import RESULTS, ROOT
from bench.results import Measurement, Results
from bench.running import own_gateway
from gateway.state.embedded import EmbeddedStore

ROUTE = "employment"
POLL_SECONDS = 0.005
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
        hosts = [urlsplit(stack.enter_context(own_gateway(*shared)).ops).netloc for _ in range(gateways)]
        editors, watchers = ([_closing(stack, HTTPConnection(host)) for host in hosts] for _ in range(2))
        pool = stack.enter_context(ThreadPoolExecutor(gateways))
        seconds: list[float] = []
        for revision in range(changes):
            began = time.monotonic()
            reached = [pool.submit(_reached, watcher, revision + 1) for watcher in watchers]
            _change(editors[revision % gateways], revision)
            seconds += [future.result() - began for future in reached]
        return seconds


def _change(editor: HTTPConnection, revision: int) -> None:
    """Another weight for the canary. Raises `RuntimeError` if the gateway refuses it."""
    canary = revision % 101
    variants = [("stable", "1", 100 - canary), ("canary", "2", canary)]
    document = {"variants": [dict(zip(("name", "version", "weight"), one, strict=True)) for one in variants]}
    headers = {"If-Match": f'"{revision}"', "Content-Type": "application/json"}
    editor.request("PUT", f"/admin/routes/{ROUTE}", orjson.dumps(document), headers)
    response = editor.getresponse()
    text = response.read()
    if response.status != HTTPStatus.OK:
        raise RuntimeError(f"{response.status}: {text.decode()}")


def _reached(watcher: HTTPConnection, revision: int) -> float:
    """When the gateway had it in force. Raises `TimeoutError`."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        watcher.request("GET", "/admin/routes")
        routes = orjson.loads(watcher.getresponse().read())["routes"]
        if any(route["name"] == ROUTE and route["revision"] >= revision for route in routes):
            return time.monotonic()
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"revision {revision} did not reach {watcher.host}:{watcher.port} in {TIMEOUT_SECONDS:g} s")


def _closing(stack: ExitStack, connection: HTTPConnection) -> HTTPConnection:
    """The connection, closed at the end."""
    stack.callback(connection.close)
    return connection


if __name__ == "__main__":
    main()
