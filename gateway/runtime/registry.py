"""What is loaded: sessions and their batchers by model and version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gateway.errors import NotFound, StartupError, Unavailable
from gateway.protocol.fast_json import FastDecoder
from gateway.runtime.answers import AnswerReader
from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.batching import Batcher
from gateway.runtime.cuda import CudaOptions
from gateway.runtime.layout import Layout
from gateway.runtime.manifest import Manifest, ModelConfig, Prediction
from gateway.runtime.memory import ModelMemory
from gateway.runtime.repository import Stamp, VersionFolder, model_bytes
from gateway.runtime.scheduler import Scheduler
from gateway.runtime.session import DEFAULT_CUDA, Device
from gateway.runtime.trust import verify
from gateway.runtime.warming import WarmModel, warm_model
from gateway.runtime.work import Batch
from gateway.telemetry.statistics import VersionStatistics
from gateway.types import ModelKey, Signature

logger = logging.getLogger(__name__)


class Session(Protocol):
    """A model in memory, of this process or of another."""

    def close(self) -> None:
        """Free the memory. Nothing may run afterwards. Called on any thread."""


@dataclass(slots=True)
class ModelVersion:
    """A version that takes requests."""

    key: ModelKey
    signature: Signature
    """As clients see it."""
    config: ModelConfig
    manifest: Manifest | None
    answers: AnswerReader | None
    session: Session
    warm: WarmModel | None
    """How it is run; None if another process does."""
    layout: Layout
    batcher: Batcher
    stamp: Stamp
    """Of its files, before they were read."""
    digest: str
    """Of what was read; see `trust.digest_of`."""
    memory: ModelMemory
    statistics: VersionStatistics = field(default_factory=VersionStatistics)
    has_simple_rows: bool = field(init=False)
    """Rows on axis 0 of every tensor, and nothing that is padded: what fits the signature needs no second look."""
    spare: WarmModel | None = field(init=False)
    """The other way to run it, until it is known which one is faster under load."""
    labels: dict[str, tuple[str, ...]] = field(init=False)
    """Names of the classes, by the output that has a value for each."""

    def __post_init__(self) -> None:
        self.has_simple_rows = self.signature.is_batchable and self.layout.is_simple
        self.spare = None if self.warm is None else self.warm.spare
        self.labels = _labels(self.manifest.prediction) if self.manifest is not None else {}

    @property
    def memory_bytes(self) -> int:
        """What it was measured to hold when it was loaded."""
        return self.memory.held.get(self.key, 0)

    def require_ready(self) -> None:
        """Raise `Unavailable` with the reason while nothing can be run."""
        if self.batcher.problem is not None:
            raise Unavailable(f"model {self.key} cannot run: {self.batcher.problem}")

    def exchange(self) -> None:
        """Run it the other way from the next run on; there must be one."""
        assert self.spare is not None  # noqa: S101 -- whoever exchanges looked
        assert isinstance(self.batcher, DynamicBatcher)  # noqa: S101 -- of a model that runs here
        self.warm, self.spare = self.spare, self.warm
        self.session = self.warm.session
        self.batcher.use(self.warm.session, self.warm.tuner, *self.warm.core_use)

    async def close(self) -> None:
        """Refuse new work, wait for what is in flight, and free the model's memory."""
        await self.batcher.close()
        self.free()

    def free(self) -> None:
        """Free the memory of a version that takes no requests."""
        # The batcher and its callback refer to each other, and so would keep the sessions until the garbage collector
        # looks, which is rarely.
        self.session.close()
        if self.spare is not None and self.spare.session is not self.session:
            self.spare.session.close()
        self.memory.release(self.key)


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
    """Verifies, loads and warms up versions; every version it loads shares the executor and its threads."""

    device: Device
    threads: int
    executor: Executor
    scheduler: Scheduler
    request_timeout: float
    on_batch: Callable[[ModelVersion, Batch], None]
    cuda: CudaOptions = DEFAULT_CUDA
    learned: Path | None = None
    """Folder with what was learned about each version before; None measures all of them."""
    model_keys: Path | None = None
    """As of `trust.read_keys`; None loads unsigned versions too."""
    memory: ModelMemory = field(default_factory=ModelMemory)

    def load_all(self, folders: list[VersionFolder], registry: Registry) -> None:
        """Load every version into the registry. One that fails is refused by name and the rest are served.

        Raises `StartupError` if not a single version could be loaded.
        """
        for folder in folders:
            try:
                registry.add(self.load(folder))
            except (StartupError, OSError) as error:
                logger.error("refused %s: %s", folder.key, error)
                registry.refused[folder.key] = str(error)
        if not registry.names:
            left_out = "[versions] in each model.toml leaves out every version that is there"
            raise StartupError("no model could be loaded: " + ("; ".join(registry.refused.values()) or left_out))

    def load(self, folder: VersionFolder) -> ModelVersion:
        """Load one version; one at a time, as its memory is measured.

        Raises `StartupError` naming the file and what is wrong with it; `NotEnoughMemory` if there is no room for it.
        """
        stamp = folder.stamp()
        with self.memory.loading(folder.key, model_bytes(stamp)):
            verified = verify(folder.folder, self.model_keys)
            manifest, digest = verified.manifest, verified.digest
            warm = warm_model(
                *(folder, self.device, self.threads, self.learned),
                verified=verified,
                cores=self.scheduler.budget,
                cuda=self.cuda,
            )
            session, layout = warm.session, warm.layout
            answers = AnswerReader(manifest.prediction, layout.signature) if manifest is not None else None
            # The files are in memory as long as somebody refers to them.
            del verified
        limits = folder.config.batching
        batcher = DynamicBatcher(
            session,
            self.executor,
            self.scheduler,
            tuner=warm.tuner,
            max_runs=warm.core_use.runs,
            threads=warm.core_use.threads,
            max_delay=limits.max_delay_ms / 1e3,
            max_queue_rows=limits.max_queue_rows,
            timeout=self.request_timeout,
            on_batch=lambda batch: self.on_batch(version, batch),
            run_clock=session.clock,
            layout=layout,
        )
        version = ModelVersion(
            *(folder.key, layout.signature, folder.config, manifest, answers, session, warm, layout, batcher),
            stamp=stamp,
            digest=digest,
            memory=self.memory,
        )
        return version
