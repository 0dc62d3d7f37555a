"""All workers of a gateway, for their supervisor: they start alike, are changed alike, and count as one.

What is loaded and what is logged and traced is the same in every worker that takes requests. So one change is made at a
time, in one worker first, which says whether it can be made at all, then in the others. A worker that was started again
is made like the others before it opens its ports, and one that cannot be made so, or could not be told of a change, is
killed and started again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial

import httpx
import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.errors import NotFound, StartupError, Unavailable
from gateway.serving.summary import Summary
from gateway.state.worker import PRIVATE, Worker, url_of
from gateway.telemetry.merging import Scrape, merged_statistics
from gateway.telemetry.metrics import WORKER_RESTARTS, WORKER_UP, WORKERS
from gateway.types import JsonObject

logger = logging.getLogger(__name__)

SCRAPE_SECONDS = 5.0
"""A worker that is slower is left out of a scrape, but for what it had counted at the last."""


class StartRefused(Exception):
    """A worker ended before it could serve, with an exit code, and has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class Fleet:
    """The workers, by index."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._changing = asyncio.Lock()
        self._state: JsonObject = {}
        """What a worker that is started now has to become."""
        self._scraping = asyncio.Lock()
        self._scrapes: dict[int, tuple[int | None, Scrape]] = {}
        """By index: process id, and what it had counted when it was last asked."""
        self._gone = Scrape()
        """What workers that are gone had counted."""

    @property
    def serving(self) -> list[Worker]:
        """Those that take requests."""
        return [worker for worker in self._workers if worker.is_serving]

    # -- Start and end -------------------------------------------------------------------------------------------------

    async def start(self) -> Summary:
        """Start all and open their ports together, so that early connections are not all one worker's.

        Raises `StartRefused`, or `StartupError` for a worker that did not get to say why it ended.
        """
        first, *others = self._workers
        # What is wrong with the models is then said once, and what the first one measures need not be measured again.
        await self._load(first, None)
        self._state = await first.state()
        await asyncio.gather(*(self._load(worker, self._versions()) for worker in others))
        try:
            summaries = await asyncio.gather(*(self._open(worker) for worker in self._workers))
        except Unavailable as error:
            raise StartupError(error.message) from error
        return Summary(**summaries[0])

    def keeping(self) -> list[Coroutine[None, None, None]]:
        """What runs as long as the workers do: each is started again when it dies, and killed when it hangs."""
        keep = [worker.keep_running(partial(self._start_again, worker)) for worker in self._workers]
        return [*keep, *(worker.watch() for worker in self._workers)]

    async def stop(self, seconds: float) -> None:
        """Have all of them answer what is in flight and end; kill those that take longer than `seconds`."""
        for worker in self._workers:
            worker.terminate()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(worker.is_gone() for worker in self._workers))
        except TimeoutError:
            for worker in self._workers:
                worker.kill(f"it has not ended {seconds:g} s after it was asked to")
        for worker in self._workers:
            worker.stop()
            await worker.http.aclose()

    async def _load(self, worker: Worker, versions: list[str] | None) -> None:
        worker.launch_with(versions)
        if await worker.has_loaded():
            return
        code = worker.exit_code or 0
        if code < 0:
            raise StartupError(
                f"{worker.name} was ended by {signal.Signals(-code).name} before it served; every worker loads every "
                "model: is there memory for that? Fewer --workers take less"
            )
        raise StartRefused(code)

    async def _start_again(self, worker: Worker) -> None:
        worker.restarts += 1
        await self._look_again()
        worker.launch_with(self._versions())
        if not await worker.has_loaded():
            return
        async with self._changing:
            # Meanwhile there may have been a change.
            await self._look_again()
            try:
                await self._open(worker)
            except Unavailable as error:
                worker.kill(error.message)
            else:
                logger.info("%s serves again", worker.name)

    async def _open(self, worker: Worker) -> JsonObject:
        """Make it like the others, then let it take requests; its `Summary`. Raises `Unavailable`."""
        answer = await worker.ask("POST", f"{PRIVATE}/open", orjson.dumps(self._state))
        if not answer.is_success:
            raise Unavailable(f"{worker.name} cannot be made like the others: {_error_of(answer)}")
        worker.is_open = True
        summary: JsonObject = answer.json()
        return summary

    def _versions(self) -> list[str]:
        return [*self._state["loaded"], *self._state["refused"]]

    async def _look_again(self) -> None:
        """Learn from a worker that serves what the others are to be like."""
        for worker in self.serving:
            try:
                self._state = await worker.state()
            except Unavailable as error:
                logger.warning("%s", error)
            else:
                return

    # -- Changes -------------------------------------------------------------------------------------------------------

    async def change(self, path: str, content: bytes) -> httpx.Response:
        """Have all workers do what an operator asks of a gateway: all of them or none; their answer.

        Raises `Unavailable` if none can be asked.
        """
        async with self._changing:
            await self._look_again()
            before = self._state
            first, *others = self._asked()
            try:
                answer = await first.ask("POST", path, content)
            except Unavailable as error:
                first.kill("it did not say whether it made a change")
                raise Unavailable(f"{error.message}; ask again, nothing was changed", retry_after=1.0) from error
            if answer.is_success:
                refused = await self._follow(others, path, content)
                if refused is not None:
                    answer = refused
                    await asyncio.gather(*(self._go_back(worker, before) for worker in [first, *others]))
                await self._look_again()
            return answer

    def _asked(self) -> list[Worker]:
        serving = self.serving
        if not serving:
            raise Unavailable("no worker takes requests now; they are started again", retry_after=1.0)
        return serving

    async def _follow(self, others: list[Worker], path: str, content: bytes) -> httpx.Response | None:
        """Have them do what the first one did; the refusal of one that cannot."""
        outcomes = await asyncio.gather(
            *(worker.ask("POST", path, content) for worker in others), return_exceptions=True
        )
        refused = None
        for worker, outcome in zip(others, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                worker.kill(f"it could not be told of a change: {outcome}")
            elif not outcome.is_success:
                logger.error("%s refused what another did; all go back: %s", worker.name, _error_of(outcome))
                refused = outcome
        return refused

    async def _go_back(self, worker: Worker, before: JsonObject) -> None:
        """Make it what it was before a change."""
        if worker.is_serving:
            try:
                answer = await worker.ask("POST", f"{PRIVATE}/state", orjson.dumps(before))
            except Unavailable as error:
                worker.kill(error.message)
            else:
                if not answer.is_success:
                    worker.kill(f"it did not go back: {_error_of(answer)}")

    # -- Answers -------------------------------------------------------------------------------------------------------

    async def ask_one(self, method: str, target: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """What one worker answers, the same one as long as it serves: what it has done is seen by whoever looks next.

        Raises `Unavailable`, and `NotFound` for what is between a worker and its supervisor.
        """
        if url_of(target).path.startswith(PRIVATE):
            raise NotFound("Not Found")
        return await self._asked()[0].ask(method, target, content, headers)

    async def statistics(self, path: str) -> JsonObject | httpx.Response:
        """Triton's statistics of all workers together, or the answer of one that has none to give.

        Raises `Unavailable`.
        """
        asking = (worker.ask("GET", PRIVATE + path, seconds=SCRAPE_SECONDS) for worker in self._asked())
        answers = await asyncio.gather(*asking)
        refused = next((answer for answer in answers if not answer.is_success), None)
        return merged_statistics(answer.json() for answer in answers) if refused is None else refused

    async def metrics(self) -> list[Metric]:
        """Those of all workers together, and of the workers themselves.

        What a worker had counted stays in the sums when it dies, so that they never fall.
        """
        async with self._scraping:
            for index, (pid, counted) in list(self._scrapes.items()):
                if self._workers[index].pid != pid or not self._workers[index].is_running:
                    self._gone.add(counted)
                    del self._scrapes[index]
            together = Scrape()
            together.add(self._gone)
            for scrape in await asyncio.gather(*(self._scrape(worker) for worker in self._workers)):
                together.add(scrape)
            return [*together.families(), *self._own_metrics()]

    async def _scrape(self, worker: Worker) -> Scrape:
        pid, last = worker.pid, self._scrapes.get(worker.index, (None, Scrape()))[1]
        if not worker.is_serving:
            return last
        try:
            answer = await worker.ask("GET", "/metrics", seconds=SCRAPE_SECONDS)
        except Unavailable as error:
            logger.warning("metrics are incomplete: %s", error)
            return last
        scrape = Scrape.of_text(answer.text)
        self._scrapes[worker.index] = pid, scrape.counts()
        return scrape

    def _own_metrics(self) -> list[Metric]:
        workers = GaugeMetricFamily(WORKERS.name, WORKERS.help, value=len(self._workers))
        up = GaugeMetricFamily(WORKER_UP.name, WORKER_UP.help, labels=WORKER_UP.labels)
        restarts = CounterMetricFamily(WORKER_RESTARTS.name, WORKER_RESTARTS.help, labels=WORKER_RESTARTS.labels)
        for worker in self._workers:
            up.add_metric([str(worker.index)], int(worker.is_serving))
            restarts.add_metric([str(worker.index)], worker.restarts)
        return [workers, up, restarts]


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
