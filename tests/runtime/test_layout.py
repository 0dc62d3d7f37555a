"""Whatever axes the rows of a model lie on, and whatever company they had, each caller gets what it would get alone."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from gateway.errors import InvalidRequest
from gateway.protocol.signature import check_request
from gateway.runtime.layout import Layout
from gateway.runtime.manifest import ModelConfig
from gateway.runtime.proof import choose_layout
from gateway.runtime.session import OnnxSession
from gateway.runtime.work import Batch
from gateway.types import Array, ModelKey, string_array
from tests.support import onnx_models, strange_models
from tests.support.batching import Caller, GatedRunner, batcher, submit_while_busy

Make: TypeAlias = Callable[[np.random.Generator, int, int], dict[str, Array]]
"""The inputs of a caller with so many rows, and so much of whatever else is variable."""


def floats(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def words(random: np.random.Generator, *shape: int) -> Array:
    return string_array(random.choice(["a", "ä", ""], int(np.prod(shape))).tolist(), shape)


def recurrent(random: np.random.Generator, rows: int, _: int) -> dict[str, Array]:
    return {"state": floats(random, 2, rows, 3), "x": floats(random, rows, 3)}


def running_total(random: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    return {"x": floats(random, length, rows, 2)}


def resampled(random: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    # Few rates, so that some callers have the same.
    return {"signal": floats(random, rows, length), "rate": np.array(random.integers(1, 3), np.float32)}


def rate_of_one(random: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    inputs = resampled(random, rows, length)
    return {**inputs, "rate": inputs["rate"].reshape(1)}


def marked(random: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    return {"text": words(random, rows, length), "mark": words(random, 1, 1)}


def turned(random: np.random.Generator, rows: int, height: int) -> dict[str, Array]:
    return {"x": random.integers(-9, 9, (height, 2, rows)).astype(np.int64)}


def tokens(random: np.random.Generator, rows: int, length: int) -> dict[str, Array]:
    return {"tokens": random.integers(0, 9, (rows, length)).astype(np.int64)}


def matrix(random: np.random.Generator, rows: int, _: int) -> dict[str, Array]:
    return {"x": floats(random, rows, 2)}


def fixed(random: np.random.Generator, _rows: int, _: int) -> dict[str, Array]:
    return {"x": floats(random, 2, 2)}


class Kind(NamedTuple):
    """A model, callers of it, and whether they share its runs."""

    content: bytes
    make: Make
    is_shared: bool = True
    toml: str = ""


KINDS = {
    "state on axis 1": Kind(strange_models.recurrent(), recurrent),
    "outputs without names": Kind(strange_models.nameless_state(), recurrent),
    "rows on axis 1": Kind(strange_models.running_total(), running_total),
    "names that say nothing": Kind(strange_models.running_total(("p", "q")), running_total),
    "axes stated": Kind(
        strange_models.running_total(("p", "q"), [None, None, 2]),
        running_total,
        toml="[batching.axes]\nx = 1\ny = 1\n",
    ),
    "rows on other axes in every output": Kind(strange_models.turned(), turned),
    "a scalar for all rows": Kind(strange_models.resampled(), resampled),
    "a list of one for all rows, nothing named": Kind(strange_models.resampled([1], [None, None]), rate_of_one),
    "strings, one for all rows": Kind(strange_models.marked(), marked),
    "two variable axes": Kind(
        onnx_models.affine_of_any_width(), lambda random, rows, columns: {"x": floats(random, rows, columns)}
    ),
    "padded sequences": Kind(strange_models.encoder(), tokens, toml=strange_models.PADDED_ENCODER),
    "sequences that padding changes": Kind(
        strange_models.encoder(heeds_mask=False), tokens, toml=strange_models.PADDED_ENCODER
    ),
    "an output that is not as long as was said": Kind(
        strange_models.twice(),
        lambda random, rows, length: {"x": floats(random, rows, length)},
        toml="[padding]\nlengths = [4, 8]\ninputs = { x = { axis = 1 } }\noutputs = { y = 1 }\n",
    ),
    "a scale taken from all rows": Kind(strange_models.dynamically_quantized(), matrix, is_shared=False),
    "answers that depend on the company": Kind(strange_models.centred(), matrix, is_shared=False),
    "answers of pairs of rows": Kind(strange_models.products(), matrix, is_shared=False),
    "outputs without rows": Kind(onnx_models.total(), matrix, is_shared=False),
    "a number of rows that depends on the values": Kind(onnx_models.positions(), matrix, is_shared=False),
    "fixed rows": Kind(onnx_models.fixed_rows(), fixed, is_shared=False),
    "not batchable, as stated": Kind(
        onnx_models.affine(columns=2), matrix, is_shared=False, toml="[batching]\nbatchable = false\n"
    ),
}


class Loaded(NamedTuple):
    """As a version is loaded."""

    session: OnnxSession
    layout: Layout
    kind: Kind

    def callers(self, shapes: list[tuple[int, int]], seed: int) -> list[Caller]:
        """Checked as requests are."""
        made = [self.kind.make(np.random.default_rng(seed + index), *shape) for index, shape in enumerate(shapes)]
        return [Caller(inputs, check_request(inputs, None, self.layout.signature, 1_000)) for inputs in made]

    def answer(self, batch: Batch) -> None:
        """What the data plane does, without routes, ids and metrics."""
        for work in batch.works:
            assert isinstance(work, Caller)
            work.answers.append([self.layout.output_of(batch, work, index) for index in range(len(batch.outputs))])

    def alone(self, caller: Caller) -> list[Array]:
        """What the model itself says, with a mask for the whole sequence where it takes one."""
        inputs = caller.inputs
        if "tokens" in inputs:
            inputs = {**inputs, "mask": np.ones(inputs["tokens"].shape, np.float32)}
        return self.session.run(inputs)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """One of the kinds, loaded once."""
    folder = tmp_path_factory.mktemp("strange")
    versions: dict[str, Loaded] = {}

    def load(name: str) -> Loaded:
        if name not in versions:
            kind = KINDS[name]
            path: Path = folder / f"{len(versions)}.onnx"
            path.write_bytes(kind.content)
            session = OnnxSession(path, "cpu")
            config = ModelConfig.model_validate(tomllib.loads(kind.toml))
            layout = choose_layout(session.run_quietly, session.graph, config, ModelKey("strange", "1"))
            versions[name] = Loaded(session, layout, kind)
        return versions[name]

    return load


def runs_of(version: Loaded, callers: list[Caller], executor: ThreadPoolExecutor, max_batch_rows: int) -> int:
    """Answers them all, the first while the others queue; how many runs that took."""
    runner = GatedRunner(version.session)

    async def scenario() -> None:
        target = batcher(
            runner, executor, max_batch_rows=max_batch_rows, on_batch=version.answer, layout=version.layout
        )
        await submit_while_busy(runner, target, callers)
        assert target.queued_rows == 0

    asyncio.run(scenario())
    return len(runner.batches)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 10)), min_size=1, max_size=12),
    max_batch_rows=st.integers(1, 12),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("name", KINDS)
def test_batched_is_the_same_as_alone(
    name: str,
    shapes: list[tuple[int, int]],
    max_batch_rows: int,
    seed: int,
    loaded: Callable[[str], Loaded],
    executor: ThreadPoolExecutor,
) -> None:
    version = loaded(name)
    callers = version.callers(shapes, seed)
    runs = runs_of(version, callers, executor, max_batch_rows)
    for caller in callers:
        for mine, alone in zip(caller.answer, version.alone(caller), strict=True):
            assert mine.dtype == alone.dtype
            assert mine.shape == alone.shape
            if alone.dtype == object:
                assert mine.tolist() == alone.tolist()
            else:
                np.testing.assert_allclose(mine, alone, rtol=1e-5, atol=1e-5)
    assert runs == len(callers) or version.kind.is_shared


@pytest.mark.parametrize("name", KINDS)
def test_callers_that_are_alike_share_a_run_where_they_may(
    name: str, loaded: Callable[[str], Loaded], executor: ThreadPoolExecutor
) -> None:
    version = loaded(name)
    # Of the same seed, so that what holds for all rows is the same.
    callers = [version.callers([(2, 3)], seed=1)[0] for _ in range(5)]
    assert version.layout.shares_runs is version.kind.is_shared
    assert runs_of(version, callers, executor, 100) == (2 if version.kind.is_shared else 5)


def lengths_in_one_run(
    version: Loaded, lengths: list[int], executor: ThreadPoolExecutor
) -> tuple[int, list[list[Array]]]:
    # The first, of a length of its own, keeps the runner busy.
    callers = version.callers([(1, length) for length in [100, *lengths]], seed=3)
    return runs_of(version, callers, executor, 100) - 1, [caller.answer for caller in callers[1:]]


@pytest.mark.parametrize(
    ("lengths", "runs"), [([3, 4, 3], 1), ([2, 3, 8], 3), ([5, 6, 7, 8], 1), ([9, 9], 1), ([9, 10], 2), ([0, 1], 2)]
)
def test_sequences_share_a_run_if_they_are_padded_to_the_same_length(
    lengths: list[int], runs: int, loaded: Callable[[str], Loaded], executor: ThreadPoolExecutor
) -> None:
    counted, answers = lengths_in_one_run(loaded("padded sequences"), lengths, executor)
    assert counted == runs
    assert [hidden.shape for _, hidden in answers] == [(1, length) for length in lengths]


def test_callers_with_another_value_for_all_rows_run_apart(
    loaded: Callable[[str], Loaded], executor: ThreadPoolExecutor
) -> None:
    version = loaded("a scalar for all rows")
    signal = np.ones((1, 2), np.float32)
    callers = [Caller({"signal": signal, "rate": np.array(rate, np.float32)}) for rate in (0, 1, 2, 1, 2, 1)]
    assert runs_of(version, callers, executor, 100) == 3
    assert [caller.answer[0].tolist() for caller in callers] == [[[rate, rate]] for rate in (0, 1, 2, 1, 2, 1)]


def test_sequences_of_one_caller_that_differ_in_length_are_refused_naming_both(tmp_path: Path) -> None:
    shape = ["batch", "sequence"]
    inputs = [onnx_models.value(name, "INT64", shape) for name in ("left", "right")]
    node = helper.make_node("Add", ["left", "right"], ["y"])
    (tmp_path / "m.onnx").write_bytes(onnx_models.model([node], inputs, [onnx_models.value("y", "INT64", shape)]))
    session = OnnxSession(tmp_path / "m.onnx", "cpu")
    padding = {"lengths": [4], "inputs": {"left": {"axis": 1}, "right": {"axis": 1}}, "outputs": {"y": 1}}
    config = ModelConfig.model_validate({"padding": padding})
    layout = choose_layout(session.run_quietly, session.graph, config, ModelKey("m", "1"))
    work = Caller({"left": np.ones((2, 3), np.int64), "right": np.ones((2, 1), np.int64)})
    assert layout.bucket_of is not None
    with pytest.raises(InvalidRequest, match=r"^the inputs differ in length \(axis 1\): 'left' 3, 'right' 1$"):
        layout.bucket_of(work)
