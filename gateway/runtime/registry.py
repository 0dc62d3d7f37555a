"""What is loaded: sessions and their batchers by model and version."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from gateway.errors import NotFound, StartupError, Unavailable
from gateway.protocol.fast_json import FastDecoder
from gateway.runtime.answers import AnswerReader
from gateway.runtime.batcher import Batcher, DynamicBatcher
from gateway.runtime.manifest import Manifest, ModelConfig, Prediction
from gateway.runtime.repository import VersionFolder
from gateway.runtime.session import Device, OnnxSession
from gateway.runtime.tuning import Plan, plan_alone, plan_side_by_side
from gateway.runtime.work import Batch
from gateway.telemetry.statistics import VersionStatistics
from gateway.types import ModelKey, Signature

logger = logging.getLogger(__name__)

PARALLEL_SECONDS = 5e-3
"""A model whose best batch takes longer on one thread gets all cores, in one run or in several side by side; for less,
threads cost more CPU time than they save waiting."""


class Session(Protocol):
    """A model in memory, of this process or of another."""

    def close(self) -> None:
        """Free the memory. Nothing may run afterwards. Called on any thread."""


@dataclass(slots=True)
class ModelVersion:
    """A version that takes requests."""

    key: ModelKey
    signature: Signature
    config: ModelConfig
    manifest: Manifest | None
    answers: AnswerReader | None
    session: Session
    batcher: Batcher
    statistics: VersionStatistics = field(default_factory=VersionStatistics)
    is_batchable: bool = field(init=False)
    labels: dict[str, tuple[str, ...]] = field(init=False)
    """Names of the classes, by the output that has a value for each."""

    def __post_init__(self) -> None:
        self.is_batchable = self.signature.is_batchable
        self.labels = _labels(self.manifest.prediction) if self.manifest is not None else {}

    def require_ready(self) -> None:
        """Raise `Unavailable` with the reason while nothing can be run."""
        if self.batcher.problem is not None:
            raise Unavailable(f"model {self.key} cannot run: {self.batcher.problem}")

    async def close(self) -> None:
        """Refuse new work, wait for what is in flight, and free the model's memory."""
        await self.batcher.close()
        # The batcher and its callback refer to each other, and so would keep the session until the garbage collector
        # looks, which is rarely.
        self.session.close()


def _labels(prediction: Prediction) -> dict[str, tuple[str, ...]]:
    if prediction.score is None or prediction.classes is None:
        return {}
    return {prediction.score: prediction.classes}


class Registry:
    """Looks versions up. A version that could not be loaded is listed with the reason and answers 503.

    Changed on the event loop only, so a look-up and what follows from it in the same turn agree.
    """

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self.decoders: dict[str, FastDecoder] = {}
        """By model: decodes the common request for the latest signature."""
        self.refused: dict[ModelKey, str] = {}

    def __iter__(self) -> Iterator[ModelVersion]:
        # A copy: whoever awaits between two versions may meet a change.
        return iter([version for versions in self._versions.values() for version in versions.values()])

    @property
    def names(self) -> list[str]:
        """Models with at least one loaded version."""
        return list(self._versions)

    @property
    def all_names(self) -> list[str]:
        """Models with at least one version, loaded or refused; sorted."""
        return sorted({*self._versions, *(key.name for key in self.refused)})

    def add(self, version: ModelVersion) -> None:
        """Make a loaded version available; what was said against it before no longer counts."""
        versions = self._versions.setdefault(version.key.name, {})
        # Versions with the same signature share the object, so that comparing them costs nothing.
        version.signature = next(
            (known.signature for known in versions.values() if known.signature == version.signature), version.signature
        )
        versions[version.key.version] = version
        self.decoders[version.key.name] = FastDecoder(self.latest(version.key.name).signature)
        self.refused.pop(version.key, None)

    def remove(self, key: ModelKey) -> ModelVersion:
        """Take a loaded version out: no request finds it any more, and the caller closes it. Raises as `get` does."""
        version = self.get(*key)
        versions = self._versions[key.name]
        del versions[key.version]
        if versions:
            self.decoders[key.name] = FastDecoder(self.latest(key.name).signature)
        else:
            del self._versions[key.name], self.decoders[key.name]
        return version

    def versions(self, name: str) -> list[str]:
        """Loaded versions of a model, ascending."""
        return sorted(self._versions.get(name, {}), key=int)

    def get(self, name: str, version: str) -> ModelVersion:
        """A loaded version. Raises `NotFound`, or `Unavailable` for one that is there but was refused."""
        try:
            return self._versions[name][version]
        except KeyError:
            raise self.missing(name, version) from None

    def latest(self, name: str) -> ModelVersion:
        """The highest loaded version. Raises as `get` does."""
        versions = self.versions(name)
        if not versions:
            raise self.missing(name, None)
        return self._versions[name][versions[-1]]

    def missing(self, name: str, version: str | None) -> NotFound | Unavailable:
        """What to tell whoever asks for a version (None: for any) that is not loaded."""
        for key, reason in self.refused.items():
            if key.name == name and version in (None, key.version):
                return Unavailable(f"model {key} is not loaded: {reason}")
        if name not in self._versions:
            known = ", ".join(self._versions) or "none"
            return NotFound(f"unknown model {name!r}; models: {known}")
        return NotFound(f"unknown version {version!r} of model {name!r}; versions: {', '.join(self.versions(name))}")

    async def close(self) -> None:
        """Refuse new work and wait for what is in flight."""
        await asyncio.gather(*(version.batcher.close() for version in self))


@dataclass(frozen=True, slots=True)
class Loader:
    """Verifies, loads and warms up versions; every version it loads shares the executor."""

    device: Device
    threads: int
    executor: Executor
    request_timeout: float
    on_batch: Callable[[ModelVersion, Batch], None]

    def load_all(self, folders: list[VersionFolder], registry: Registry) -> None:
        """Load every version into the registry. One that fails is refused by name and the rest are served.

        Raises `StartupError` if not a single version could be loaded.
        """
        for folder in folders:
            try:
                registry.add(self.load(folder))
            except StartupError as error:
                logger.error("refused %s: %s", folder.key, error)
                registry.refused[folder.key] = str(error)
        if not registry.names:
            raise StartupError("no model could be loaded: " + "; ".join(registry.refused.values()))

    def load(self, folder: VersionFolder) -> ModelVersion:
        """Load one version. Raises `StartupError` naming the file and what is wrong with it."""
        manifest = folder.verify()
        limits = folder.config.batching
        session, plan = self._warm_session(folder)
        answers = AnswerReader(manifest.prediction, session.signature) if manifest is not None else None
        batcher = DynamicBatcher(
            session,
            self.executor,
            max_batch_rows=plan.batch_rows,
            max_runs=plan.runs,
            max_queue_rows=limits.max_queue_rows,
            timeout=self.request_timeout,
            on_batch=lambda batch: self.on_batch(version, batch),
        )
        version = ModelVersion(folder.key, session.signature, folder.config, manifest, answers, session, batcher)
        return version

    def _warm_session(self, folder: VersionFolder) -> tuple[OnnxSession, Plan]:
        """A session that has run, and how it is used best."""
        session = OnnxSession(folder.model_path, self.device, self.threads or 1)
        limit = folder.config.batching.max_batch_rows if session.signature.is_batchable else 1
        plan = plan_alone(session.warm_up, limit)
        cores = len(os.sched_getaffinity(0))
        if self.threads == 0 and self.device == "cpu" and cores > 1 and plan.seconds > PARALLEL_SECONDS:
            wide = OnnxSession(folder.model_path, self.device, cores)
            wide_plan = plan_alone(wide.warm_up, limit)
            apart = plan_side_by_side(session.warm_up, plan, cores)
            if apart.is_better(wide_plan):
                plan = apart
            else:
                session, plan = wide, wide_plan
        if plan.batch_rows < limit or plan.runs > 1:
            logger.info("%s: %s, of %d rows allowed", folder.key, plan, limit)
        return session, plan
