"""Open loop: requests leave at a constant rate whatever the server does, and latency counts from the intended time.

A client that waits for one answer before it sends the next request stops measuring exactly while the server stalls.
Here a stalled server finds every request that was due in the meantime, each with the time it has waited. A request that
finds no free connection waits for one, and that wait counts too.

`python -m bench.openloop URL --body FILE --rate 1000 --seconds 5` prints the result as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import resource
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import uvloop

from bench.histogram import Histogram
from bench.timer import Timer

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d", re.IGNORECASE)
REFUSALS = (429, 503)
DRAIN_SECONDS = 10.0
"""After the last request, how long to wait for answers."""
LONGEST_BACKLOG = 200_000
"""Requests that may wait for a connection; what is due beyond it is counted as unsent."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. Everything about it is bounded: rate, time and connections."""

    url: str
    body: bytes
    rate: float
    seconds: float
    connections: int = 256
    also: tuple[str, ...] = ()
    """Other addresses on the same server: each request goes to one of all of them at random."""
    is_poisson: bool = True
    """Independent clients arrive like this; without it the spacing is even."""
    seed: int = 7


@dataclass(frozen=True, slots=True)
class OpenResult:
    """Counts, rates, and percentiles in microseconds from the intended time of sending."""

    offered: int
    answered: int
    refused: int
    """429 and 503."""
    refused_with_retry_after: int
    failed: int
    """Any other status."""
    lost: int
    """Connections that broke with a request on them."""
    unsent: int
    unanswered: int
    goodput: float
    """Answers a second that arrived before the last request was due."""
    latency: dict[str, float]
    refusal_latency: dict[str, float]
    send_lag: dict[str, float]
    """From the intended to the real time of sending: the generator's own lateness and the wait for a connection."""
    generator_cpu_us: float
    """CPU time of the generator for each request."""


def arrivals(plan: Plan) -> Iterator[float]:
    """Intended times of sending, in seconds from the start."""
    spread = random.Random(plan.seed)
    at = 0.0
    while at < plan.seconds:
        yield at
        at += spread.expovariate(plan.rate) if plan.is_poisson else 1 / plan.rate


def request_bytes(url: str, body: bytes) -> bytes:
    """The same bytes for every request."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One request in flight at a time."""

    def __init__(self, generator: Generator) -> None:
        self.intended: float | None = None
        """Of the request in flight."""
        self._generator = generator
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Free for a request."""
        self._transport = transport
        self._generator.on_free(self)

    def send(self, request: bytes, intended: float) -> None:
        """Put a request on the wire."""
        self.intended = intended
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count the answer once all of it is here."""
        received = self._received + data if self._received else data
        head_end = received.find(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(received, 0, head_end + 2) if head_end >= 0 else None
        if head_end >= 0 and length is None:
            # Without a length its end is not known; the connection is of no more use.
            self.close()
        elif length is None or len(received) < head_end + 4 + int(length[1]):
            self._received = received
        else:
            self._received = b""
            self._generator.on_answer(self, int(received[9:12]), received[: head_end + 2])

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was in flight is lost."""
        self._generator.on_lost(self)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


class Generator:
    """Sends what is due, on whichever connection is free."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = [request_bytes(url, plan.body) for url in (plan.url, *plan.also)]
        self._choice = random.Random(plan.seed)
        self._arrivals = arrivals(plan)
        self._next: float | None = next(self._arrivals)
        self._free: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[float] = deque()
        self._finished = asyncio.Event()
        self._is_closing = False
        self._in_flight = 0
        self._offered = self._answered = self._in_time = self._unsent = self._lost = self._failed = 0
        self._with_retry_after = 0
        self._latency, self._refusals, self._lag = Histogram(), Histogram(), Histogram()

    async def run(self) -> OpenResult:
        """Connect, send at the planned times, wait for the answers. Raises `OSError` if nothing listens."""
        for _ in range(self._plan.connections):
            await self._connect()
        cpu_before = _cpu_seconds()
        self._start = time.monotonic()
        with Timer(self._send_due) as self._timer:
            self._send_due()
            try:
                async with asyncio.timeout(self._plan.seconds + DRAIN_SECONDS):
                    await self._finished.wait()
            except TimeoutError:
                pass  # What is missing is counted as unanswered.
        cpu = _cpu_seconds() - cpu_before
        self._close()
        return self._result(cpu)

    def stop(self) -> None:
        """Send nothing more; `run` returns when the answers are there."""
        self._next = None
        self._check_finished()

    def on_free(self, connection: Connection) -> None:
        """A connection takes what waits longest, or waits itself."""
        self._open.add(connection)
        if self._backlog:
            self._send(connection, self._backlog.popleft())
        else:
            self._free.append(connection)

    def on_answer(self, connection: Connection, status: int, head: bytes) -> None:
        """Record it by kind."""
        now = time.monotonic()
        intended, connection.intended = connection.intended, None
        if intended is None:
            connection.close()  # An answer to nothing: the connection cannot be trusted.
            return
        self._in_flight -= 1
        if status < 300:
            self._answered += 1
            self._in_time += now - self._start <= self._plan.seconds
            self._latency.add(now - intended)
        elif status in REFUSALS:
            self._refusals.add(now - intended)
            self._with_retry_after += RETRY_AFTER.search(head) is not None
        else:
            self._failed += 1
        self.on_free(connection)
        self._check_finished()

    def on_lost(self, connection: Connection) -> None:
        """Open another in its place."""
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._is_closing:
            return
        if connection.intended is not None:
            self._in_flight -= 1
            self._lost += 1
        task = asyncio.get_running_loop().create_task(self._reconnect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._check_finished()

    async def _connect(self) -> None:
        parts = urlsplit(self._plan.url)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: Connection(self), parts.hostname or "", parts.port or 80)

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except OSError:
            if not self._open:
                self._finished.set()

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._next is not None and self._start + self._next <= now:
            self._offered += 1
            self._dispatch(self._start + self._next)
            self._next = next(self._arrivals, None)
        if self._next is not None:
            self._timer.set(self._start + self._next)
        self._check_finished()

    def _dispatch(self, intended: float) -> None:
        if self._free:
            self._send(self._free.pop(), intended)
        elif len(self._backlog) < LONGEST_BACKLOG:
            self._backlog.append(intended)
        else:
            self._unsent += 1

    def _send(self, connection: Connection, intended: float) -> None:
        self._in_flight += 1
        self._lag.add(time.monotonic() - intended)
        connection.send(self._choice.choice(self._requests), intended)

    def _check_finished(self) -> None:
        if self._next is None and not self._in_flight and not self._backlog:
            self._finished.set()

    def _close(self) -> None:
        self._is_closing = True
        for task in self._opening:
            task.cancel()
        for connection in list(self._open):
            connection.close()

    def _result(self, cpu_seconds: float) -> OpenResult:
        return OpenResult(
            offered=self._offered,
            answered=self._answered,
            refused=self._refusals.count,
            refused_with_retry_after=self._with_retry_after,
            failed=self._failed,
            lost=self._lost,
            unsent=self._unsent + len(self._backlog),
            unanswered=self._in_flight,
            goodput=self._in_time / self._plan.seconds,
            latency=self._latency.summary(),
            refusal_latency=self._refusals.summary(),
            send_lag=self._lag.summary(),
            generator_cpu_us=cpu_seconds / max(1, self._offered) * 1e6,
        )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.openloop", description="Load at a constant arrival rate.")
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True, help="File with the body of every request.")
    parser.add_argument("--rate", type=float, required=True, help="Requests a second.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--even", action="store_true", help="Evenly spaced instead of Poisson arrivals.")
    options = parser.parse_args()
    plan = Plan(
        options.url,
        options.body.read_bytes(),
        options.rate,
        options.seconds,
        options.connections,
        is_poisson=not options.even,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(Generator(plan).run())
    print(orjson.dumps(asdict(result)).decode())


if __name__ == "__main__":
    main()
