"""Brings a version to the point where it takes requests: a session that has run, and what is known about its runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.errors import StartupError
from gateway.protocol.datatypes import NUMPY_DTYPES
from gateway.runtime.batch_axes import candidates
from gateway.runtime.cores import usable_cores
from gateway.runtime.cuda import CudaOptions
from gateway.runtime.layout import Layout
from gateway.runtime.learned import Circumstances, LearnedState, learned_file, read_learned, remember
from gateway.runtime.manifest import BatchingConfig
from gateway.runtime.proof import choose_layout
from gateway.runtime.repository import VersionFolder
from gateway.runtime.session import DEFAULT_CUDA, Device, OnnxSession, import_onnxruntime
from gateway.runtime.trust import Verified, verify
from gateway.runtime.tuner import BatchPolicy, Tuner
from gateway.runtime.tuning import (
    BUDGET_SECONDS,
    PARALLEL_SECONDS,
    ROUNDS,
    CoreUse,
    Samples,
    best_core_uses,
    core_uses,
    measure,
    points,
    powers_of_two,
    side_by_side,
)
from gateway.types import Signature

logger = logging.getLogger(__name__)

LEARNED_FOLDER = "learned"
"""In the data directory."""
SPARE_BYTES = 256 * 2**20
"""Of a model file: two sessions of a larger one are not kept."""
TRIAL_BYTES = 32 * 2**20
"""Of inputs in a run of zeros: ONNX Runtime keeps the memory that it once took. Larger runs are tried in traffic."""


@dataclass(frozen=True, slots=True)
class WarmModel:
    """A session that has run, how callers share its runs, how these use the cores, and what is known of them."""

    session: OnnxSession
    layout: Layout
    core_use: CoreUse
    tuner: Tuner
    circumstances: Circumstances
    spare: WarmModel | None = None
    """Another way to run it that may be faster than it was measured."""

    def state(self) -> LearnedState:
        """What was learned up to now, for the next start."""
        return remember(self.circumstances, self.core_use, self.tuner)


class Trial:
    """The sessions of one version, one for each number of threads, and what was measured with them."""

    def __init__(
        self,
        folder: VersionFolder,
        device: Device,
        threads: int,
        *,
        verified: Verified | None = None,
        cores: int | None = None,
        cuda: CudaOptions = DEFAULT_CUDA,
    ) -> None:
        """`threads` of a run, 0 to measure how many of the `cores`, which are all that there are unless given.

        The version is read from its folder unless it was `verified` before. Raises `StartupError` if the model does not
        load, or cannot be run as its `model.toml` says.
        """
        self._path = folder.model_path
        verified = verify(folder.folder) if verified is None else verified
        self._open = partial(
            OnnxSession, folder.model_path, device, content=verified.content, config=folder.config, cuda=cuda
        )
        cores = usable_cores() if cores is None else cores
        batching = folder.config.batching
        _refuse_on_device(self._path, batching, device, cores)
        self.core_uses = _core_uses(batching, device, threads, cores)
        self._sessions: dict[int, OnnxSession] = {}
        first = self._sessions[self.core_uses[0].threads] = self._open(self.core_uses[0].threads)
        if not candidates(first.graph):
            _refuse_batching(self._path, batching)
        self.layout = choose_layout(first.run_quietly, first.graph, folder.config, folder.key)
        first.know_rows(self.layout.signature)
        self.policy = policy_of(batching, shares_runs=self.layout.shares_runs)
        self.circumstances = Circumstances(
            sha256=verified.digest,
            device=device,
            onnxruntime=import_onnxruntime().__version__,
            cores=cores,
        )

    def session(self, threads: int) -> OnnxSession:
        """A session with as many threads; the same one each time."""
        if threads not in self._sessions:
            self._sessions[threads] = self._open(threads)
            self._sessions[threads].know_rows(self.layout.signature)
        return self._sessions[threads]

    def measured(
        self, sizes: tuple[int, ...], *, budget: float = BUDGET_SECONDS, rounds: int = ROUNDS
    ) -> dict[CoreUse, Samples]:
        """Samples of the core_uses that deserve it, for ascending numbers of rows; empty if the model refuses zeros."""
        sizes = _affordable(sizes, self.session(self.core_uses[0].threads).signature)
        one = CoreUse(1, 1)
        if one not in self.core_uses or len(self.core_uses) == 1:
            return self._measure(self.core_uses, sizes, budget, rounds)
        # Enough for a model that is fast; what is found out about another is that it is not.
        samples = self._measure((one,), sizes, budget / 4, rounds)
        if not samples:
            return {}
        tuner = self.tuner(samples[one])
        if tuner.last.point(tuner.last.rows).seconds <= PARALLEL_SECONDS:
            return samples
        return self._measure(self.core_uses[1:], sizes, budget, rounds)

    def tuner(self, samples: Samples | None = None) -> Tuner:
        """One that knows what was measured."""
        tuner = Tuner(self.policy)
        for point in points(samples or {}):
            tuner.last.cost.warm(point.rows, point.seconds)
        tuner.last.choose()
        return tuner

    def warm(self, core_use: CoreUse, rows: int) -> None:
        """Run every size up to `rows` that may occur: ONNX Runtime plans memory for each when it is first run."""
        session = self.session(core_use.threads)
        for size in _affordable(self.policy.sizes, session.signature):
            if size <= rows and session.warm_up(size) is None:
                return

    def keep(self, tuners: dict[CoreUse, Tuner]) -> WarmModel:
        """The model as it is going to be run, the cores used in the first of one or two ways.

        Sessions that this does not need are closed.
        """
        kept = {core_use.threads for core_use in tuners}
        for threads, session in self._sessions.items():
            if threads not in kept:
                session.close()
        warm = None
        for core_use, tuner in reversed(tuners.items()):
            session = self.session(core_use.threads)
            warm = WarmModel(session, self.layout, core_use, tuner, self.circumstances, spare=warm)
        assert warm is not None  # noqa: S101 -- there is at least one
        return warm

    def _measure(
        self, candidates: tuple[CoreUse, ...], sizes: tuple[int, ...], budget: float, rounds: int
    ) -> dict[CoreUse, Samples]:
        with ThreadPoolExecutor(max(core_use.runs for core_use in candidates)) as workers:
            runs = {
                core_use: side_by_side(self.session(core_use.threads).warm_up, core_use.runs, workers)
                for core_use in candidates
            }
            return measure(runs, sizes, budget, rounds)


def warm_model(
    folder: VersionFolder,
    device: Device,
    threads: int,
    learned: Path | None,
    *,
    verified: Verified | None = None,
    cores: int | None = None,
    cuda: CudaOptions = DEFAULT_CUDA,
) -> WarmModel:
    """Load a version and find out how it is run best, or look it up in the folder `learned`.

    The rest is as for `Trial`. Raises `StartupError` that names the file and what is wrong.
    """
    trial = Trial(folder, device, threads, verified=verified, cores=cores, cuda=cuda)
    state = None
    if learned is not None:
        state = read_learned(learned_file(learned, folder.key), trial.circumstances, trial.core_uses)
    if state is not None:
        tuner = trial.tuner()
        state.restore(tuner)
        trial.warm(state.core_use, tuner.last.rows)
        tuners = {state.core_use: tuner}
    else:
        samples = trial.measured(trial.policy.sizes)
        chosen = best_core_uses(samples, trial.policy.slo) if samples else list(trial.core_uses[:1])
        # The other one is kept only where the model is small beside what a gateway needs anyway.
        kept = chosen if folder.model_path.stat().st_size <= SPARE_BYTES else chosen[:1]
        tuners = {core_use: trial.tuner(samples.get(core_use)) for core_use in kept}
    warm = trial.keep(tuners)
    report(folder, warm)
    return warm


def report(folder: VersionFolder, warm: WarmModel) -> None:
    """What was chosen, in the log; a warning where the target is out of reach."""
    shape, slo = warm.tuner.last, warm.tuner.policy.slo
    point = shape.point(shape.rows)
    rest = "" if warm.spare is None else f"; {warm.spare.core_use} will be tried under load"
    logger.info("%s: %s, up to %d rows in a run%s", folder.key, warm.core_use, shape.rows, rest)
    if slo is not None and math.isfinite(point.latency) and point.latency > slo:
        logger.warning(
            "%s: slo_ms cannot be kept: %.1f ms is what a request may wait for, with the %d rows that are the fastest",
            *(folder.key, point.latency * 1e3, shape.rows),
        )


def policy_of(batching: BatchingConfig, *, shares_runs: bool) -> BatchPolicy:
    """What `model.toml` asks of the tuner."""
    if not shares_runs:
        return BatchPolicy((1,))
    slo = None if batching.slo_ms is None else (batching.slo_ms - batching.max_delay_ms) / 1e3
    sizes = batching.fixed_rows or powers_of_two(batching.rows_limit)
    return BatchPolicy(sizes, slo, is_preferred=batching.preferred_batch_rows is not None)


def _core_uses(batching: BatchingConfig, device: Device, threads: int, cores: int) -> tuple[CoreUse, ...]:
    """`model.toml` comes before the gateway's setting, which means one run at a time where it says anything."""
    instances = batching.instances
    if batching.threads is None and (threads or device == "cuda"):
        return core_uses(instances or 1, threads or 1, cores)
    return core_uses(instances, batching.threads, cores)


def _refuse_on_device(path: Path, batching: BatchingConfig, device: Device, cores: int) -> None:
    if device == "cuda" and batching.threads is not None:
        raise StartupError(f"{path}: batching.threads has no effect on cuda; leave it out of model.toml")
    if batching.instances is not None and batching.instances > max(2, cores):
        raise StartupError(
            f"{path}: batching.instances is {batching.instances}, and this machine runs at most {max(2, cores)}"
        )


def _refuse_batching(path: Path, batching: BatchingConfig) -> None:
    """A model without a row axis runs one request at a time."""
    given: Mapping[str, object] = batching.model_dump(exclude_unset=True)
    useless = [name for name in ("slo_ms", "preferred_batch_rows", "max_delay_ms") if given.get(name)]
    if batching.max_batch_rows not in {None, 1}:
        useless.append("max_batch_rows")
    if useless:
        raise StartupError(
            f"{path}: not every input and output has a variable first axis, so requests run alone and "
            f"batching.{useless[0]} has no effect; leave it out of model.toml"
        )


def _affordable(sizes: tuple[int, ...], signature: Signature) -> tuple[int, ...]:
    # Zeros have the extent 1 on a variable axis, which a signature writes as -1.
    row_bytes = sum(
        math.prod(abs(extent) for extent in spec.shape[1:]) * NUMPY_DTYPES[spec.datatype].itemsize
        for spec in signature.inputs
    )
    return tuple(size for size in sizes if size * row_bytes <= TRIAL_BYTES) or (1,)
