"""`make demo`: real rows through a running gateway, and what the gateway makes of them, read back from the gateway.

It ends with exit code 1 if anything it promises was not observed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bench.client import Answer, Connection, for_each
from bench.running import Urls, answers, own_gateway
from gateway.errors import StartupError
from gateway.opsclient import DEFAULT_URL, OpsClient
from gateway.types import JsonObject
from models import traffic
from models.traffic import Rows

T = TypeVar("T")

SINGLE_ROWS = 4_000
"""Predictions sent one by one, as applications do; these can be labelled."""
YEAR_ROWS = 6_000
HALF_YEAR_ROWS = 2_000
LABELLED_ROWS = 2_000
CHUNK_ROWS = 50
"""Rows in one request where nobody is going to label them."""
TIMEOUT_SECONDS = 45.0
SIGMAS = 4.0
"""How far an observed share may be from its weight: chance alone goes further once in 16,000 runs."""
DATATYPES = {"f": "FP32", "O": "BYTES"}

STABLE = {"name": "stable", "version": "1"}
CANARY = {"name": "canary", "version": "2"}


class NotObserved(Exception):
    """Something that the demo promises did not happen."""


class Served(NamedTuple):
    """One answer, and the label that will come back for it."""

    prediction_id: str
    version: str
    answer: int
    label: int


class Demo:
    """The chapters in order; each prints what it saw."""

    def __init__(self, urls: Urls, console: Console) -> None:
        self._urls = urls
        self._ops = OpsClient(urls.ops, None)
        self._console = console

    async def run(self) -> None:
        """All chapters. Raises `NotObserved`."""
        served = await self._split()
        await self._live_change()
        await self._silent_years()
        await self._accidents()
        await self._labels(served[:LABELLED_ROWS])

    async def _split(self) -> list[Served]:
        self._chapter("1. Census rows of 2016, split 90/10 between two versions")
        await self._set_route(90, 10, "demo: canary at 10 %")
        served = await self._send_singly(traffic.employment(2016), SINGLE_ROWS)
        self._check_share(served, CANARY["version"], 0.10)
        return served

    async def _live_change(self) -> None:
        self._chapter("2. The weights change to 50/50 while requests run")
        user = await self._user_of(STABLE["version"])
        beta = {"x-user-id": user, "x-beta": "1"}
        self._say(f"user {user} belongs to version 1; the change also sends requests with `x-beta: 1` to the canary")
        # Requests with that header ran on version 1 until now: the first one from version 2 marks the moment.
        watch = asyncio.create_task(self._until_version(CANARY["version"], beta))
        await asyncio.sleep(0)
        sent = time.perf_counter()
        await self._set_route(
            50, 50, "demo: half and half", match=[{"header": "x-beta", "equals": "1", **_to_canary()}]
        )
        elapsed = await watch - sent
        self._say(f"in force for the running traffic {elapsed * 1000:.0f} ms after the command")
        _expect(elapsed < 1.0, f"the change took {elapsed:.2f} s, more than a second")
        served = await self._send_singly(traffic.employment(2016), SINGLE_ROWS)
        self._check_share(served, CANARY["version"], 0.50)

    async def _silent_years(self) -> None:
        self._chapter("3. Census rows of 2016 to 2018: large numbers, small differences, no alarm")
        for year in (2016, 2017, 2018):
            for verdict in await self._judge("employment", traffic.employment(year), 0, YEAR_ROWS, f"{year}"):
                age = next(feature for feature in verdict["features"] if feature["name"] == "AGEP")
                self._say(
                    f"{year} version {verdict['version']}: {verdict['status']} on {verdict['rows']} rows; "
                    f"age moved by D={age['ks']:.3f} (p={age['p']:.1e}), too little to matter"
                )
                _expect(
                    verdict["status"] == "ok", f"employment {year} raised {verdict['status']}: {verdict['reasons']}"
                )

    async def _accidents(self) -> None:
        self._chapter("4. Accidents, trained on 2016: the world moves, and the alarm comes")
        alarms: list[int] = []
        for year in range(2016, 2022):
            rows = traffic.accidents(year)
            # Two windows a year: an alarm needs drift that lasts.
            for half in range(min(2, len(rows.labels) // HALF_YEAR_ROWS)):
                verdict = (await self._judge("accidents", rows, half * HALF_YEAR_ROWS, HALF_YEAR_ROWS, f"{year}"))[-1]
                loudest = next(
                    (why for why in verdict["reasons"] if "drift in" in why), "".join(verdict["reasons"][:1])
                )
                self._say(f"{year}, {verdict['rows']} rows: {verdict['status']}{': ' if loudest else ''}{loudest}")
                if verdict["status"] == "alarm":
                    alarms.append(year)
                _expect(year > 2016 or verdict["status"] == "ok", "the rows of 2016 themselves were called drift")
        _expect(bool(alarms), "accidents drifted through the years and no alarm came")
        self._say(f"first alarm with the rows of {alarms[0]}")

    async def _labels(self, served: list[Served]) -> None:
        self._chapter("5. Labels come back for the answers of chapter 1")
        before = await self._performance()

        async def post(connection: Connection, one: Served) -> None:
            body = orjson.dumps({"prediction_id": one.prediction_id, "label": one.label})
            _parsed(await connection.post("/v2/feedback", body))
            advance()

        with self._progress("labels", len(served)) as advance:
            await for_each(self._urls.public, served, post)

        def arrived(now: dict[str, Counter[str]]) -> bool:
            return sum((now[name] - before[name])["labelled"] for name in now) >= len(served)

        after = await self._wait("the collector to join the labels", self._performance, arrived)
        for variant in (STABLE, CANARY):
            counted = after[variant["name"]] - before[variant["name"]]
            own = [one for one in served if one.version == variant["version"]]
            correct = sum(one.answer == one.label for one in own)
            self._say(
                f"{variant['name']} (version {variant['version']}): {counted['labelled']} labels, "
                f"accuracy {counted['correct'] / counted['labelled']:.3f}"
            )
            expected = (len(own), correct)
            _expect(
                (counted["labelled"], counted["correct"]) == expected,
                f"the gateway counted {dict(counted)}, the demo (labelled, correct) = {expected}",
            )

    async def _set_route(self, stable: int, canary: int, reason: str, match: list[JsonObject] | None = None) -> None:
        document: JsonObject = {
            "sticky": {"header": "x-user-id"},
            "variants": [{**STABLE, "weight": stable}, {**CANARY, "weight": canary}],
            "match": match or [],
        }
        _, tag = await asyncio.to_thread(self._ops.route, "employment")
        stored = await asyncio.to_thread(self._ops.put_route, "employment", document, tag, reason)
        self._say(f"route employment, revision {stored['revision']}: stable={stable} canary={canary}")

    async def _user_of(self, version: str) -> str:
        for number in range(100):
            user = f"walker-{number}"
            if (await self._ask({"x-user-id": user}))["model_version"] == version:
                return user
        raise NotObserved(f"none of 100 users was answered by version {version}")

    async def _ask(self, headers: dict[str, str]) -> JsonObject:
        found: list[JsonObject] = []

        async def ask(connection: Connection, body: bytes) -> None:
            found.append(_parsed(await connection.post("/v2/models/employment/infer", body, headers)))

        await for_each(self._urls.public, [_body(traffic.employment(2016), 0, 1)], ask, 1)
        return found[0]

    async def _until_version(self, version: str, headers: dict[str, str]) -> float:
        deadline = time.perf_counter() + TIMEOUT_SECONDS
        while (await self._ask(headers))["model_version"] != version:
            _expect(time.perf_counter() < deadline, "the change of the route never reached the traffic")
        return time.perf_counter()

    async def _send_singly(self, rows: Rows, count: int) -> list[Served]:
        """Each row as a request of its own from a user of its own."""
        served: list[Served] = []
        count = min(count, len(rows.labels))

        async def send(connection: Connection, row: int) -> None:
            body = _body(rows, row, row + 1)
            answer = await connection.post("/v2/models/employment/infer", body, {"x-user-id": f"user-{row}"})
            document = _parsed(answer)
            label = int(document["outputs"][0]["data"][0])
            prediction_id = answer.headers["prediction-id"]
            served.append(Served(prediction_id, document["model_version"], label, int(rows.labels[row])))
            advance()

        with self._progress("predictions", count) as advance:
            await for_each(self._urls.public, range(count), send)
        return served

    async def _judge(self, model: str, rows: Rows, first: int, count: int, name: str) -> list[JsonObject]:
        """Send rows and wait for a verdict on each version that got some; lowest version first."""
        last = min(first + count, len(rows.labels))
        versions = {version for version in ("1", "2") if model == "employment" or version == "1"}
        known = {_verdict_id(verdict) for verdict in await self._verdicts(model)}

        async def send(connection: Connection, start: int) -> None:
            stop = min(start + CHUNK_ROWS, last)
            headers = {"x-user-id": f"{name}-{start}"}
            _parsed(await connection.post(f"/v2/models/{model}/infer", _body(rows, start, stop), headers))
            advance(stop - start)

        with self._progress(f"rows of {name}", last - first) as advance:
            await for_each(self._urls.public, range(first, last, CHUNK_ROWS), send, 4)

        async def news() -> list[JsonObject]:
            return [verdict for verdict in await self._verdicts(model) if _verdict_id(verdict) not in known]

        found = await self._wait(
            "a verdict of the collector", news, lambda new: {verdict["version"] for verdict in new} >= versions
        )
        return sorted(found, key=lambda verdict: (verdict["version"], verdict["closed"]))

    async def _verdicts(self, model: str) -> list[JsonObject]:
        return await asyncio.to_thread(self._ops.verdicts, model, 100)

    async def _performance(self) -> dict[str, Counter[str]]:
        """Labelled and correct by variant."""
        found: dict[str, Counter[str]] = {STABLE["name"]: Counter(), CANARY["name"]: Counter()}
        report = (await asyncio.to_thread(self._ops.drift, "employment"))[0]
        for record in report["performance"]:
            counts = found.setdefault(record["variant"], Counter())
            counts.update(labelled=record["labelled"], correct=record["correct"])
        return found

    async def _wait(self, what: str, read: Callable[[], Any], is_done: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with self._console.status(f"waiting for {what}"):
            while not is_done(value := await read()):
                _expect(time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS:.0f} s in vain for {what}")
                await asyncio.sleep(0.2)
        return value

    def _check_share(self, served: list[Served], version: str, weight: float) -> None:
        counts = Counter(one.version for one in served)
        share = counts[version] / len(served)
        allowed = SIGMAS * (weight * (1 - weight) / len(served)) ** 0.5
        parts = ", ".join(f"{count} by version {name}" for name, count in sorted(counts.items()))
        self._say(f"{parts}: share of version {version} is {share:.3f}, its weight {weight:.2f} (± {allowed:.3f})")
        _expect(abs(share - weight) <= allowed, f"share {share:.3f} is further than {allowed:.3f} from {weight}")

    def _chapter(self, title: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")

    def _say(self, line: str) -> None:
        self._console.print(f"   {line}", markup=False, soft_wrap=True)

    def _progress(self, what: str, total: int) -> _Bar:
        return _Bar(self._console, what, total)


class _Bar:
    """A progress bar as a context that yields the function which advances it."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=total)

    def __enter__(self) -> Callable[..., None]:
        self._progress.start()
        return lambda count=1: self._progress.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _to_canary() -> JsonObject:
    return {"variant": CANARY["name"]}


def _body(rows: Rows, start: int, stop: int) -> bytes:
    inputs = [
        {
            "name": name,
            "shape": [stop - start, *array.shape[1:]],
            "datatype": DATATYPES[array.dtype.kind],
            "data": array[start:stop].ravel().tolist(),
        }
        for name, array in rows.inputs.items()
    ]
    return orjson.dumps({"inputs": inputs})


def _parsed(answer: Answer) -> JsonObject:
    document: JsonObject = orjson.loads(answer.body)
    _expect(answer.status == 200, f"the gateway answered {answer.status}: {document.get('error')}")
    return document


def _verdict_id(verdict: JsonObject) -> tuple[str, float]:
    return verdict["version"], verdict["closed"]


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise NotObserved(message)


def main() -> int:
    """Run against the gateway that answers, else against one of our own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="public port of a running gateway")
    parser.add_argument("--ops-url", default=DEFAULT_URL, help="its ops port")
    options = parser.parse_args()
    console = Console(highlight=False)
    urls = Urls(options.url, options.ops_url)
    is_running = answers(urls)
    started = time.monotonic()
    if is_running:
        console.print(f"Using the gateway at {urls.public}; its route `employment` will change.")
    else:
        console.print(f"No gateway answers at {urls.public}; starting one for the demo.")
    with nullcontext(urls) if is_running else own_gateway() as found:
        try:
            asyncio.run(Demo(found, console).run())
        except (NotObserved, StartupError) as error:
            console.print(f"\n[bold red]Not observed:[/bold red] {error}")
            return 1
    console.print(f"\n[bold green]Everything was observed[/bold green], in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
