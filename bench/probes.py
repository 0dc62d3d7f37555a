"""What the `runtime` scenarios measure: models, settings and loads of one gateway against each other.

Each takes turns within a round, as servers do elsewhere, and every figure that is compared with another is of the same
round. Where elsewhere a server's name stands, the name of the model, setting or load does.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import httpx
import numpy as np

from bench import streams, wrk, zoo
from bench.cpu import usage
from bench.environments import PeerUnavailable
from bench.places import relative
from bench.recording import Length, ScenarioRecorder
from bench.scenarios import JSON_HEADERS, SWEPT, Request, write_request
from bench.servers import Running, ask, gateway_kind, read_answer, serve
from bench.streams import Stream
from bench.zoo import Entry

SHAPES = {"short": 32, "long": 256}
SHAPE_SHARE = 0.2
"""Of what the model can do of each shape: together they leave it more than half idle."""
SHARE_QUEUE_ROWS = 32
CROWD = 10
"""Times as many requests for the large model as for the small."""
SLO_MS = 100.0
TARGET_LOADS = (0.5, 0.9)
LONE_SLICES = 5
SWEEP_REQUEST_ROWS = 8
"""A run has at least the rows of one request, so sizes below are one."""
LARGEST_SWEPT = 256
CONTENDERS = 3
CYCLES = 100
WARM_CYCLES = 10
"""After these, memory is looked at for the first time: allocators keep some of what the first ones took."""
CYCLE_RATE = 300.0
"""Requests a second, at each of the two models."""
RESIDENTS = 24
RESIDENT_RATE = 400.0
"""Requests a second, about a third of what one core does: rows for 24 models hardly ever share a run."""
CONTROL_SECONDS = 60.0


class Asked(NamedTuple):
    """What the models of a scenario are asked: by input, and as files."""

    inputs: Mapping[str, Any]
    sent: Request


Probe: TypeAlias = Callable[[ScenarioRecorder, Length], None]


def shapes(record: ScenarioRecorder, length: Length) -> None:
    """Two shapes of one model, each by itself and then both."""
    asked = {name: _request(record, name, zoo.sequences(extent)) for name, extent in SHAPES.items()}
    with _gateway(record, {"sequence": Entry(zoo.file_of("sequence"))}, list(asked.values())) as running:
        url = _url(running, "sequence")
        for number in range(1, length.rounds + 1):
            rates = {name: SHAPE_SHARE * _capacity(url, one.sent, 32, 1) for name, one in asked.items()}
            loads = {name: Stream(url, relative(one.sent.body), rates[name]) for name, one in asked.items()}
            for name, load in loads.items():
                (alone,) = streams.run([load], 0.6 * length.seconds)
                record.add(f"{name} alone", number, _opened(alone))
            together = streams.run(list(loads.values()), 0.6 * length.seconds)
            for name, seen in zip(loads, together, strict=True):
                record.add(f"{name} together", number, _opened(seen))


def shares(record: ScenarioRecorder, length: Length) -> None:
    """Two copies of one model: both with more than they can do, and then the small one with less than its share."""
    asked = _request(record, "row", zoo.rows_of("magika", 1))
    entry = Entry(zoo.file_of("magika"), f"max_queue_rows = {SHARE_QUEUE_ROWS}")
    with _gateway(record, {"small": entry, "large": entry}, [asked], "--thread-budget", "1") as running:
        for number in range(1, length.rounds + 1):
            capacity = _capacity(_url(running, "small"), asked.sent, SHARE_QUEUE_ROWS - 8, 2)
            for share, suffix in ((1.0, ""), (0.25, ", a quarter")):
                rate = share * capacity
                loads = [
                    Stream(_url(running, "small"), relative(asked.sent.body), rate),
                    Stream(_url(running, "large"), relative(asked.sent.body), CROWD * rate, 256),
                ]
                small, large = streams.run(loads, 0.8 * length.seconds)
                goodput = small["goodput"] + large["goodput"]
                record.add(
                    f"small{suffix}",
                    number,
                    {
                        **_opened(small),
                        "share": small["goodput"] / goodput if goodput else 0.0,
                        "answered_share": small["answered"] / small["offered"],
                        "p99_beside_large": small["latency"]["p99_us"] / max(large["latency"]["p99_us"], 1.0),
                    },
                )
                record.add(f"large{suffix}", number, {**_opened(large), "capacity_per_second": capacity})


def target(record: ScenarioRecorder, length: Length) -> None:
    """Shares of the capacity; what the capacity is afterwards says whether the machine was the same throughout.

    The capacity is that of the runs that keep the target: as many callers as make one wait while one runs.
    """
    asked = _request(record, "row", zoo.rows_of("dense", 1))
    with _gateway(record, {"dense": Entry(zoo.file_of("dense"), f"slo_ms = {SLO_MS:g}")}, [asked]) as running:
        url = _url(running, "dense")
        _capacity(url, asked.sent, 16, 2)
        for number in range(1, length.rounds + 1):
            callers = max(2, round(2 * _chosen_rows(running, "dense")))
            capacity = _capacity(url, asked.sent, callers, 2)
            for share in TARGET_LOADS:
                (seen,) = streams.run(
                    [Stream(url, relative(asked.sent.body), share * capacity, 256)], 0.8 * length.seconds
                )
                values = {
                    "capacity_per_second": capacity,
                    "slo_share": seen["latency"]["p99_us"] / (SLO_MS * 1000),
                    "rows": _chosen_rows(running, "dense"),
                }
                record.add(f"{share:.0%} of the capacity", number, {**_opened(seen), **values})
            afterwards = _capacity(url, asked.sent, callers, 2)
            rows = _chosen_rows(running, "dense")
            record.add("capacity afterwards", number, {"capacity_per_second": afterwards, "rows": rows})


def lone(record: ScenarioRecorder, length: Length) -> None:
    """One connection, in short slices by turns: the medians of the slices of a round are compared."""
    asked = _request(record, "row", zoo.rows_of("mlp", 1))
    file = zoo.file_of("mlp")
    settings = {"learned": Entry(file), "one-row": Entry(file, "max_batch_rows = 1")}
    with _gateway(record, settings, [asked]) as running:
        for name in settings:
            _closed(_url(running, name), asked.sent, 1, 1)
        for number in range(1, length.rounds + 1):
            slices: dict[str, list[wrk.ClosedResult]] = {name: [] for name in settings}
            for _ in range(LONE_SLICES):
                for name in settings:
                    slices[name].append(_closed(_url(running, name), asked.sent, 1, 0.2 * length.seconds))
            for name, seen in slices.items():
                medians = {"p50_us": [one.p50_us for one in seen], "p99_us": [one.p99_us for one in seen]}
                record.add(name, number, {value: statistics.median(each) for value, each in medians.items()})


def sweep(record: ScenarioRecorder, length: Length) -> None:
    """Fixed sizes once, the better ones twice; then the best of them and the learned one by turns."""
    name = SWEPT[record.scenario]
    rows, connections, seconds = (1, 64, 2.0) if name == "magika" else (SWEEP_REQUEST_ROWS, 64, 1.0)
    asked = _request(record, "rows", zoo.rows_of(name, rows))
    file = zoo.file_of(name)
    fixed = {f"rows-{size}": size for size in swept_sizes(rows, connections * rows)}
    entries = {"learned": Entry(file), **{one: Entry(file, f"max_batch_rows = {size}") for one, size in fixed.items()}}
    with _gateway(record, entries, [asked]) as running:

        def rate(setting: str, duration: float) -> float:
            return rows * _capacity(_url(running, setting), asked.sent, connections, duration)

        found = {setting: [rate(setting, seconds)] for setting in fixed}
        for setting in best_of(found, CONTENDERS):
            found[setting].append(rate(setting, seconds))
        for setting, rates in found.items():
            record.add(setting, 1, {"swept_rows_per_second": statistics.mean(rates), "rows": fixed[setting]})
        # A size that was met on a good second only is no contender: the mean of two is.
        (best,) = best_of({setting: rates for setting, rates in found.items() if len(rates) > 1}, 1)
        rate("learned", 2 * seconds)
        for number in range(1, length.rounds + 1):
            for setting, label in (("learned", "learned"), (best, "best fixed")):
                values = {"rows_per_second": rate(setting, 0.4 * length.seconds)}
                record.add(label, number, {**values, "rows": _chosen_rows(running, setting)})


def reload(record: ScenarioRecorder, length: Length) -> None:
    """The version that answers leaves and comes back, time and again, under load; so it is measured once."""
    del length
    asked = _request(record, "row", zoo.rows_of("mlp", 1))
    file = zoo.file_of("mlp")
    with _gateway(record, {"moving": Entry(file, versions=2), "staying": Entry(file)}, [asked]) as running:
        loads = [Stream(_url(running, name), relative(asked.sent.body), CYCLE_RATE) for name in ("moving", "staying")]
        seen: list[dict[str, Any]] = []
        seconds, memory = [], []
        with streams.running(loads, seen):
            for _ in range(CYCLES):
                started = time.monotonic()
                for action in ("unload", "load"):
                    _control(running, "moving", action, "2")
                seconds.append(time.monotonic() - started)
                memory.append(usage(running.pid).tree_rss_bytes)
        for name, one in zip(("moving", "staying"), seen, strict=True):
            # It was stopped early, so its goodput, which is per planned second, says nothing.
            rate = one["answered"] / sum(seconds)
            record.add(name, 1, {**_opened(one), "requests_per_second": rate, "unsuccessful": unsuccessful(one)})
        record.add(
            "both",
            1,
            {
                "cycles": len(seconds),
                "cycle_ms": statistics.median(seconds) * 1e3,
                "unsuccessful": sum(unsuccessful(one) for one in seen),
                "rss_before_bytes": memory[WARM_CYCLES - 1],
                "rss_after_bytes": memory[-1],
                "rss_growth": memory[-1] / memory[WARM_CYCLES - 1],
            },
        )


def resident(record: ScenarioRecorder, length: Length) -> None:
    """The same requests at one model and at 24, of two gateways that take turns."""
    asked = _request(record, "row", zoo.rows_of("mlp", 1))
    file = zoo.file_of("mlp")
    names = [f"m-{number}" for number in range(1, RESIDENTS + 1)]
    with (
        _gateway(record, {names[0]: Entry(file)}, [asked], name="one") as one,
        _gateway(record, dict.fromkeys(names, Entry(file)), [asked], name="all") as many,
    ):
        for number in range(1, length.rounds + 1):
            for running, models in ((one, names[:1]), (many, names)):
                first, *others = (_url(running, name) for name in models)
                load = Stream(first, relative(asked.sent.body), RESIDENT_RATE, also=tuple(others))
                (seen,) = streams.run([load], 0.6 * length.seconds)
                memory = {"rss_bytes": usage(running.pid).tree_rss_bytes, "file_bytes": file.stat().st_size}
                record.add(f"models: {len(models)}", number, {**_opened(seen), **memory})


PROBES: dict[str, Probe] = {
    "shapes": shapes,
    "shares": shares,
    "target": target,
    "lone": lone,
    **dict.fromkeys(SWEPT, sweep),
    "reload": reload,
    "resident": resident,
}


def swept_sizes(request_rows: int, rows_in_flight: int) -> list[int]:
    """Powers of two up to 256 that can make a difference.

    A run has at least the rows of a request and at most those in flight.

    >>> swept_sizes(1, 16)
    [1, 2, 4, 8, 16]
    """
    powers = (2**power for power in range(LARGEST_SWEPT.bit_length()))
    return [size for size in powers if request_rows <= size <= rows_in_flight]


def best_of(rates: Mapping[str, list[float]], count: int) -> list[str]:
    """The settings with the best mean rates, best first."""
    return sorted(rates, key=lambda setting: -statistics.mean(rates[setting]))[:count]


def unsuccessful(seen: Mapping[str, Any]) -> int:
    """Requests of an open loop that were not answered with a prediction, for whatever reason."""
    return sum(int(seen[kind]) for kind in ("refused", "failed", "lost", "unsent", "unanswered"))


@contextmanager
def _gateway(
    record: ScenarioRecorder, entries: Mapping[str, Entry], asked: list[Asked], *options: str, name: str = "gateway"
) -> Iterator[Running]:
    """One on a repository of its own, and ONNX Runtime on one thread: the others belong to loop and load.

    Each model's answer to all that is `asked` is held against the model's own first.
    """
    models = zoo.repository(f"{record.scenario}-{name}", entries)
    kind = gateway_kind(f"{record.scenario}-{name}", models, "--sample-rate", "0.01", *options, path="")
    with serve(kind, record.scenario, threads=1) as running:
        record.command(name, running.command)
        for model, entry in entries.items():
            for one in asked:
                _verify(running, model, entry, one)
        yield running


def _verify(running: Running, model: str, entry: Entry, asked: Asked) -> None:
    """Raises `PeerUnavailable` with what is wrong."""
    answer = read_answer(running.kind, ask(replace(running, url=_url(running, model)), asked.sent.body, {})) or []
    wanted = zoo.expected(entry.file, asked.inputs).ravel()
    is_close = np.allclose(answer, wanted, rtol=1e-3, atol=1e-5) if wanted.dtype.kind == "f" else False
    if not is_close and answer != wanted.tolist():
        raise PeerUnavailable(f"{model} answers {answer[:4]} where the model says {wanted[:4].tolist()}")


def _url(running: Running, model: str) -> str:
    return f"{running.url}/v2/models/{model}/infer"


def _request(record: ScenarioRecorder, name: str, inputs: Mapping[str, Any]) -> Asked:
    return Asked(inputs, write_request(f"{record.scenario}-{name}", zoo.body(inputs), JSON_HEADERS))


def _closed(url: str, sent: Request, connections: int, seconds: float) -> wrk.ClosedResult:
    seen = wrk.run(url, connections, seconds, sent.script)
    if seen.requests == seen.refused:
        raise PeerUnavailable(f"{url} answered none of {seen.requests} requests")
    return seen


def _capacity(url: str, sent: Request, connections: int, seconds: float) -> float:
    """Answers a second in a closed loop."""
    seen = _closed(url, sent, connections, seconds)
    return (seen.requests - seen.refused) / seen.seconds


def _opened(seen: Mapping[str, Any]) -> dict[str, float]:
    return {
        "requests_per_second": seen["goodput"],
        "p50_us": seen["latency"]["p50_us"],
        "p99_us": seen["latency"]["p99_us"],
        "refused": seen["refused"],
        "lost": unsuccessful(seen) - seen["refused"],
        "send_lag_p99_us": seen["send_lag"]["p99_us"],
    }


def _chosen_rows(running: Running, model: str) -> float:
    """Rows that a run of the model may have now, as the gateway's metric says."""
    metrics = httpx.get(f"{running.ops_url}/metrics", trust_env=False).raise_for_status().text
    match = re.search(rf'^gateway_chosen_batch_rows{{model="{model}".*}} (\S+)$', metrics, re.MULTILINE)
    if match is None:
        raise PeerUnavailable(f"the metrics do not say how many rows a run of {model} may have")
    return float(match[1])


def _control(running: Running, model: str, action: str, version: str) -> None:
    """Load or unload a version, and wait until that is done."""
    answer = httpx.post(
        f"{running.ops_url}/v2/repository/models/{model}/{action}",
        json={"parameters": {"version": version}},
        timeout=CONTROL_SECONDS,
        trust_env=False,
    )
    if not answer.is_success:
        raise PeerUnavailable(f"{action} of {model} answers {answer.status_code}: {answer.text[:300]}")
