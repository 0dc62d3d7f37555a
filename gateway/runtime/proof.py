"""Whether rows may share a run, and sequences be padded, found out by doing it while a version is loaded.

A graph names axes, it does not say that no row looks at another. So made-up rows run alone and together, in two
orders, and each must be answered alike. What is refuted is not done; a model that refuses all made-up values is taken
at its word only where nothing unusual is claimed, and the batcher goes on checking that every output has its rows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from gateway.errors import GatewayError, InferenceFailed, InvalidRequest, StartupError
from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.runtime.batch_axes import Graph, candidates, stated, without_rows
from gateway.runtime.layout import Layout
from gateway.runtime.manifest import MODEL_CONFIG_FILE, ModelConfig
from gateway.runtime.padding import with_padding
from gateway.runtime.work import Batch, Work
from gateway.types import Array, ModelKey, Signature, TensorSpec, string_array

logger = logging.getLogger(__name__)

Run: TypeAlias = Callable[[dict[str, Array]], list[Array]]
"""As `OnnxSession.run`."""

BUDGET_SECONDS = 1.0
"""For one proof. At least one comparison is made, however long its runs take."""
SEEDS = 3
"""Comparisons, each with other values, if there is time."""
CALLERS = 3
"""In each, with one row."""
ORDERS = ((1, 0), (2, 0, 1))
"""Which of three callers share a run, as first, second and third."""
ROUNDING = 8
"""Steps of a datatype that sums of another order may be apart, where the tolerance is less."""
WORDS = ("", "a", "b", "word", "1", "2.5")


class Trial(NamedTuple):
    """What values are made up. The first that the model takes counts."""

    extent: int
    """Of the variable axes, but for that of the rows."""
    integers: int
    """Integers are below it: an embedding takes no others than it has rows, and a count may say how much to compute."""


TRIALS = (Trial(5, 10), Trial(5, 2), Trial(1, 10), Trial(1, 2), Trial(64, 2))


class Finding(NamedTuple):
    """What came of a proof."""

    verdict: Literal["proved", "mixed", "rowless", "untried"]
    """`mixed`: rows are answered otherwise in company; `rowless`: there are not as many in every output."""
    reason: str = ""


class NotRows(Exception):
    """The outputs of a run do not have its rows where they should."""


class MadeUp(Work):
    """Nobody's rows."""

    def fail(self, error: GatewayError) -> None:
        """Nobody waits for them."""


def choose_layout(run: Run, graph: Graph, config: ModelConfig, key: ModelKey) -> Layout:
    """How the callers of a model share its runs, if they may; the log says what was decided, and why.

    Raises `StartupError` for a configuration that the graph contradicts.
    """
    try:
        layouts = _layouts(graph, config)
    except StartupError as error:
        raise StartupError(f"{MODEL_CONFIG_FILE}: {error}") from error
    batching = config.batching
    if not layouts or not batching.batchable:
        return Layout(without_rows(graph))
    first = layouts[0]
    is_trusted = batching.axes is not None or first.signature.has_rows_first
    if batching.max_batch_rows == 1:
        return _alone(first, has_rows=is_trusted)
    findings = []
    for layout in layouts:
        findings.append(prove_rows(run, layout, batching.tolerance))
        if findings[-1].verdict == "proved":
            if not layout.is_simple:
                logger.info("%s: %s", key, _described(layout.signature))
            return _proved_to_pad(run, layout, batching.tolerance, key)
    verdict, reason = findings[0]
    if is_trusted and all(finding.verdict == "untried" for finding in findings):
        unpadded = "" if first.padding is None else ", and sequences are not padded"
        logger.warning("%s: rows share runs unproved%s: %s", key, unpadded, reason)
        return _without_lengths(first)
    logger.warning("%s: each request runs alone: %s", key, reason)
    return _alone(first, has_rows=is_trusted and verdict == "mixed")


def _proved_to_pad(run: Run, layout: Layout, tolerance: float, key: ModelKey) -> Layout:
    """The layout; without padding if that changes what is answered, which the log says."""
    finding = Finding("proved") if layout.padding is None else prove_padding(run, layout, tolerance)
    if finding.verdict == "proved":
        return layout
    logger.warning("%s: sequences are not padded: %s", key, finding.reason)
    return _without_lengths(layout)


def prove_rows(run: Run, layout: Layout, tolerance: float) -> Finding:
    """Whether rows that share a run are answered as they are alone. Sequences are not padded here."""
    layout = _without_lengths(layout)
    for trial in TRIALS:
        finding = _prove(run, layout, trial, [(trial.extent,) * CALLERS] * SEEDS, tolerance)
        if finding.verdict != "untried":
            break
    return finding


def prove_padding(run: Run, layout: Layout, tolerance: float) -> Finding:
    """Whether padded sequences of different lengths in one run are answered as each is alone and unpadded."""
    assert layout.padding is not None  # noqa: S101 -- what else would be proved
    buckets = [(shortest + 1, length) for shortest, length in pairwise((0, *layout.padding.lengths))]
    # Where one length is all there is nothing is padded, which proves nothing: those come last.
    buckets.sort(key=lambda bucket: bucket[0] == bucket[1])
    for trial in TRIALS:
        finding = _prove(run, layout, trial, [(low, high, (low + high) // 2) for low, high in buckets], tolerance)
        if finding.verdict != "untried":
            break
    return finding


def _prove(run: Run, layout: Layout, trial: Trial, lengths: Sequence[tuple[int, ...]], tolerance: float) -> Finding:
    """Compare runs of callers together with runs of each alone and unpadded.

    `lengths` are those of the callers' sequences, if there are any, for each comparison.
    """
    deadline = time.perf_counter() + BUDGET_SECONDS
    apart = _without_lengths(layout)
    finding = Finding("untried")
    for seed, extents in enumerate(lengths):
        works = _made_up(layout, trial, extents, seed)
        try:
            alone = [_answers(run, apart, [work])[0] for work in works]
            again = _answers(run, apart, works[:1])[0]
        except NotRows as error:
            return Finding("rowless", str(error))
        except (InvalidRequest, InferenceFailed) as error:
            return finding if finding.verdict == "proved" else Finding("untried", error.message)
        if any(_difference(mine, before, tolerance) for mine, before in zip(again, alone[0], strict=True)):
            return Finding("untried", "its answers to the same values differ from run to run")
        for order in ORDERS:
            finding = _compare(
                run, layout, [works[index] for index in order], [alone[index] for index in order], tolerance
            )
            if finding.verdict != "proved":
                return finding
        if time.perf_counter() > deadline:
            break
    return finding


def _compare(run: Run, layout: Layout, works: list[Work], alone: list[list[Array]], tolerance: float) -> Finding:
    """Whether callers together get what each gets alone."""
    try:
        together = _answers(run, layout, works)
    except NotRows as error:
        return Finding("rowless", str(error))
    except (InvalidRequest, InferenceFailed) as error:
        return Finding("mixed", f"{len(works)} rows together fail, each alone does not: {error.message}")
    for answers, expected in zip(together, alone, strict=True):
        for spec, mine, its in zip(layout.signature.outputs, answers, expected, strict=True):
            difference = _difference(mine, its, tolerance)
            if difference is not None:
                reason = f"output {spec.name!r} of {len(works)} rows together is not that of each alone: {difference}"
                return Finding("mixed", reason)
    return Finding("proved")


def _answers(run: Run, layout: Layout, works: list[Work]) -> list[list[Array]]:
    """All outputs of each caller of one run. Raises `NotRows`, or what the run raises."""
    rows = len(works)
    for start, work in enumerate(works):
        work.start = start
    inputs = layout.gather(works, rows)
    assert inputs is not None  # noqa: S101 -- there are works, and none is text
    outputs = run(inputs)
    if not layout.has_rows(outputs, rows):
        shapes = ", ".join(
            f"{spec.name!r} (rows on axis {spec.axis}) {list(output.shape)}"
            for spec, output in zip(layout.signature.outputs, outputs, strict=True)
        )
        raise NotRows(f"{rows} rows do not give as many in every output: {shapes}")
    batch = Batch(works, inputs, outputs, rows, 0.0, 0.0)
    return [[layout.output_of(batch, work, index) for index in range(len(outputs))] for work in works]


def _difference(together: Array, alone: Array, tolerance: float) -> str | None:
    """In words, if it is more than the tolerance allows."""
    if together.shape != alone.shape:
        return f"shape {list(together.shape)}, not {list(alone.shape)}"
    if alone.dtype.kind != "f":
        return None if np.array_equal(together, alone) else "other values"
    greatest = float(np.abs(alone, where=np.isfinite(alone), out=np.zeros_like(alone)).max(initial=0))
    allowed = max(tolerance, ROUNDING * float(np.finfo(alone.dtype).eps)) * greatest
    wide, expected = together.astype(np.float64), alone.astype(np.float64)
    if np.allclose(wide, expected, rtol=0, atol=allowed, equal_nan=True):
        return None
    with np.errstate(invalid="ignore"):
        worst = np.abs(wide - expected).max()
    return f"{worst:.3g} apart, {allowed:.3g} are allowed"


def _made_up(layout: Layout, trial: Trial, lengths: tuple[int, ...], seed: int) -> list[Work]:
    """Callers with a row each, whose sequences are as long as `lengths` says; what holds for all rows is the same."""
    random = np.random.default_rng(seed)
    places = [] if layout.padding is None else layout.padding.places

    def shape(spec: TensorSpec, length: int) -> tuple[int, ...]:
        variable = (
            1 if axis == spec.axis else length if (spec.name, axis) in places else trial.extent
            for axis in range(len(spec.shape))
        )
        return tuple(made_up if extent == -1 else extent for extent, made_up in zip(spec.shape, variable, strict=True))

    specs = layout.signature.inputs
    shared = {spec.name: _values(random, spec, shape(spec, 0), trial, seed) for spec in specs if spec.axis is None}
    rows = [spec for spec in specs if spec.axis is not None]
    return [
        MadeUp({**shared, **{spec.name: _values(random, spec, shape(spec, length), trial, seed) for spec in rows}}, 1)
        for length in lengths
    ]


def _values(random: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], trial: Trial, seed: int) -> Array:
    dtype = NUMPY_DTYPES[spec.datatype]
    if spec.datatype == BYTES:
        return string_array(random.choice(WORDS, math.prod(shape)).tolist(), shape)
    if dtype.kind == "f":
        # Counts and shares are not negative, and some models know no other numbers.
        return (random.normal(size=shape) if seed % 2 == 0 else random.random(shape)).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else trial.integers, shape).astype(dtype)


def _without_lengths(layout: Layout) -> Layout:
    return layout if layout.padding is None else Layout(layout.signature, layout.padding.masking_only())


def _layouts(graph: Graph, config: ModelConfig) -> list[Layout]:
    """What the configuration and the graph may mean together, the likeliest first.

    Raises `StartupError` where they contradict each other.
    """
    axes = config.batching.axes
    signatures = candidates(graph) if axes is None else [stated(graph, axes)]
    if config.padding is None:
        return [Layout(signature) for signature in signatures]
    layouts, contradictions = [], []
    for signature in signatures:
        try:
            padding, seen = with_padding(config.padding, signature)
            layouts.append(Layout(seen, padding))
        except StartupError as error:
            contradictions.append(error)
    if not signatures:
        raise StartupError("padding: the model has no rows, so no two requests could share a run")
    if not layouts:
        raise contradictions[0]
    return layouts


def _alone(layout: Layout, *, has_rows: bool) -> Layout:
    """The same model without company; a mask that clients do not send is still made."""
    padding = None if layout.padding is None else layout.padding.masking_only()
    if has_rows:
        return Layout(layout.signature, padding, shares_runs=False)
    inputs, outputs = layout.signature
    return Layout(
        Signature(*(tuple(spec._replace(axis=None) for spec in specs) for specs in (inputs, outputs))), padding
    )


def _described(signature: Signature) -> str:
    """On which axes the rows lie, for the log."""
    inputs = (
        f"{spec.name!r} holds for all rows" if spec.axis is None else f"{spec.name!r} has them on axis {spec.axis}"
        for spec in signature.inputs
    )
    outputs = (f"{spec.name!r} on axis {spec.axis}" for spec in signature.outputs)
    return f"rows share runs: {', '.join(inputs)}; outputs: {', '.join(outputs)}"
