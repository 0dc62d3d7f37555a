"""Versions whose sessions are in the engine process: the worker's side of the data plane.

The batcher is the same as over a session of one's own; only a run is a message. So whatever arrives in one turn of the
event loop, or while messages are on their way, goes in one; timeouts, priorities and the repetition of a failed run
caller by caller stay here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.errors import GatewayError, Unavailable
from gateway.protocol.parameters import Schedule
from gateway.runtime.answers import AnswerReader
from gateway.runtime.batching import BUSY, Batcher, Departure
from gateway.runtime.cost_model import CostModel
from gateway.runtime.engine.client import RETRY_AFTER_SECONDS, EngineClient, RemoteRun, RemoteSession
from gateway.runtime.engine.tensors import pack
from gateway.runtime.layout import Layout
from gateway.runtime.manifest import MANIFEST_FILE, parse_manifest
from gateway.runtime.queue import ALONE
from gateway.runtime.registry import Loader, ModelVersion
from gateway.runtime.repository import VersionFolder
from gateway.runtime.work import Batch, Work
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import Array

SENT_AHEAD = 1
"""Messages beyond those that the engine runs at once: the next one is there when a run ends."""


class RemoteBatcher(Batcher):
    """Sends its batches to the engine."""

    def __init__(
        self,
        session: RemoteSession,
        layout: Layout,
        *,
        max_queue_rows: int,
        timeout: float,
        on_batch: Callable[[Batch], None],
        count_device_batch: Callable[[float], None],
    ) -> None:
        """`count_device_batch` gets the rows of each run on the device; the rest is as for any batcher."""
        super().__init__(
            layout, max_queue_rows=max_queue_rows, timeout=timeout, on_batch=on_batch, clock=time.monotonic
        )
        self._session = session
        self._count_device_batch = count_device_batch
        self._input_names = [spec.name for spec in session.signature.inputs]
        self._cost = CostModel()
        """Of a message, from here to the engine and back."""
        self._sent: dict[RemoteRun, list[Work]] = {}

    @property
    def problem(self) -> str | None:
        """Why the engine cannot run anything of this version now."""
        return self._session.problem

    @property
    def chosen_rows(self) -> int:
        """As the engine said last."""
        return self._session.batch_rows

    @property
    def _max_messages(self) -> int:
        """On their way at once."""
        messages = self._session.loaded.runs + SENT_AHEAD
        # Where each is one caller's, as many as have the rows of the runs.
        return messages * self._session.batch_rows if self._session.loaded.is_put_together_here else messages

    def submit(self, work: Work) -> None:
        """As ever; raises `Unavailable` while the engine is away, too."""
        if self._session.problem is not None:
            raise Unavailable(self._session.problem, retry_after=RETRY_AFTER_SECONDS)
        super().submit(work)

    def discard(self, work: Work) -> None:
        """As ever; a message of which all callers left is taken back."""
        super().discard(work)
        for run, works in list(self._sent.items()):
            if work in works and all(one.is_cancelled for one in works):
                self._session.cancel(run)

    def _schedule(self) -> None:
        if not self._is_scheduled and self._running < self._max_messages:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        now = self._clock()
        bucket = self.queue.oldest(now)
        try:
            if bucket is not None:
                most = self._session.batch_rows if self._is_batchable else ALONE
                works = self.queue.take_from(bucket, most, now)
                self._send(works, Departure(now, self._reason(bucket)))
        finally:
            # Whatever a caller's reply does, the next batch must run.
            self._go_on()

    def _go_on(self) -> None:
        if self.queue.buckets:
            self._why = BUSY
            self._schedule()
        elif not self._running:
            self._idle.set()

    def _send(self, works: list[Work], departure: Departure) -> None:
        gathered = self._gather(works, departure)
        if gathered is None:
            return
        works, rows, inputs = gathered
        try:
            packed = pack(self._session.signature.inputs, [inputs[name] for name in self._input_names])
        except (ValueError, MemoryError) as error:
            self._finish(works, {}, departure, error)
            return

        def end(outcome: list[Array] | GatewayError, began: float | None, device_rows: int) -> None:
            del self._sent[run]
            self._running -= 1
            try:
                if device_rows:
                    self._count_device_batch(device_rows)
                if began is not None:
                    self._cost.observe(rows, self._clock() - departure.at)
                self._finish(works, inputs, departure._replace(at=began or departure.at), outcome)
            finally:
                self._go_on()

        enqueued = max([work.enqueued for work in works])
        run = RemoteRun(self._session, packed, rows, enqueued, self._common_schedule(works), end)
        self._sent[run] = works
        self._running += 1
        self._session.send(run)

    def _expect(self) -> None:
        rows = self._session.batch_rows
        seconds = self._cost.predict(rows)
        if 0.0 < seconds < math.inf:
            # Little's law (1961): what is on its way, over how long it is.
            self.queue.expect(rows / seconds * (self._session.loaded.runs + SENT_AHEAD))

    def _common_schedule(self, works: list[Work]) -> Schedule | None:
        """In the engine a message has the best priority of its callers, and a timeout if all of them said one."""
        schedules = [work.schedule for work in works if work.schedule is not None]
        if not schedules:
            return None
        # Those that say nothing are of the last level.
        priority = min([schedule.priority for schedule in schedules])
        ends = [
            work.enqueued + work.schedule.timeout
            for work in works
            if work.schedule is not None and work.schedule.timeout is not None
        ]
        timeout = max(0.0, max(ends) - self._clock()) if len(ends) == len(works) else None
        return Schedule(priority, timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoader(Loader):
    """Has the engine load versions; of them the worker itself holds what it answers with, and no model.

    `load` blocks: call it on a thread.
    """

    client: EngineClient
    metrics: GatewayMetrics

    def load(self, folder: VersionFolder) -> ModelVersion:
        """Load one version. Raises `StartupError` with the engine's reason, which verifies the files, too."""
        session = self.client.load(folder.key)
        loaded = session.loaded
        layout = loaded.layout
        try:
            manifest = parse_manifest(folder.folder / MANIFEST_FILE, session.manifest) if session.manifest else None
            answers = AnswerReader(manifest.prediction, layout.signature) if manifest is not None else None
        except BaseException:
            session.close()
            raise
        batcher = RemoteBatcher(
            session,
            layout,
            max_queue_rows=folder.config.batching.max_queue_rows,
            timeout=self.request_timeout,
            on_batch=lambda batch: self.on_batch(version, batch),
            count_device_batch=self.metrics.version(folder.key).engine_batch_rows.observe_one,
        )
        self.memory.held[folder.key] = loaded.memory_bytes
        version = ModelVersion(
            *(folder.key, layout.signature, folder.config, manifest, answers, session, None, layout, batcher),
            stamp=loaded.files,
            digest=loaded.digest,
            memory=self.memory,
        )
        return version
