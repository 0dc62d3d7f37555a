"""Which way to use the cores is decided by rows a second under load, and nobody notices the exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.runtime.registry import ModelVersion
from gateway.runtime.tuning import CoreUse
from gateway.runtime.warming import WarmModel
from gateway.serving.core_contest import (
    LOOK_SECONDS,
    WINDOW_SECONDS,
    WINDOWS,
    Contest,
    CoreContests,
    Decision,
)
from gateway.serving.learning import Learning
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.planes import Plane, plane_over
from tests.support.versions import batcher_of, onnx_session_of, warm_of

APART = CoreUse(2, 1)


def hold(contest: Contest, rates: tuple[float, float], *, saturated: Callable[[int], bool] = lambda _look: True) -> int:
    """Looks at a model whose two ways do so many rows a second, until it is decided; the way that is kept."""
    in_use, rows = 0, 0.0
    for look in range(1000):
        decision = contest.look(look * LOOK_SECONDS, int(rows), is_saturated=saturated(look))
        if decision.exchange:
            in_use = 1 - in_use
        if decision.is_over:
            return in_use
        rows += rates[in_use] * LOOK_SECONDS
    return -1


@pytest.mark.parametrize(
    ("rates", "kept"),
    [((100.0, 200.0), 1), ((200.0, 100.0), 0), ((100.0, 110.0), 1), ((100.0, 101.0), 0), ((100.0, 100.0), 0)],
)
def test_the_faster_way_is_kept_and_the_first_if_there_is_little_in_it(rates: tuple[float, float], kept: int) -> None:
    assert hold(Contest(), rates) == kept


def test_both_ways_have_as_many_windows() -> None:
    contest, now, exchanges = Contest(), 0.0, 0
    while not (decision := contest.look(now, round(100 * now), is_saturated=True)).is_over:
        exchanges += decision.exchange
        now += LOOK_SECONDS
    assert exchanges == 2 * WINDOWS - 1
    assert now >= 2 * WINDOWS * WINDOW_SECONDS
    # It ended with the other way, and goes back.
    assert decision.exchange


def test_without_enough_to_do_nothing_is_decided() -> None:
    assert hold(Contest(), (100.0, 200.0), saturated=lambda _look: False) == -1
    # A lull in each window.
    assert hold(Contest(), (100.0, 200.0), saturated=lambda look: look % 5 != 0) == -1
    assert hold(Contest(), (100.0, 200.0), saturated=lambda look: look % 50 != 0) == 1


def test_an_idle_machine_is_looked_at_without_effect() -> None:
    assert Contest().look(1.0, 5, is_saturated=False) == Decision()


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    write_version(tmp_path / "models", "m", "1", onnx_models.affine())
    with plane_over(tmp_path / "models", tmp_path) as made:
        yield made


def contested(plane: Plane) -> ModelVersion:
    """The version, with a second way to be run."""
    version = plane.registry.get("m", "1")
    warm = warm_of(version)
    version.spare = WarmModel(
        *(warm.session, warm.layout, APART, type(warm.tuner)(warm.tuner.policy)), warm.circumstances
    )
    return version


def test_requests_are_answered_whichever_way_is_in_use(plane: Plane) -> None:
    version = contested(plane)
    first, other = warm_of(version), version.spare

    async def scenario() -> list[np.ndarray]:
        answers = []
        for turn in range(20):
            asked = [plane.predict("m", {"x": np.full((1, 3), value, np.float32)}) for value in range(5)]
            tasks = [asyncio.ensure_future(one) for one in asked]
            if turn % 3 == 0:
                await asyncio.sleep(0)
                version.exchange()
            answers.append(np.concatenate([(await task).outputs[0][1] for task in tasks]))
        return answers

    answers = asyncio.run(scenario())
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])
    assert version.warm is other
    assert version.spare is first
    assert other is not None
    # Each way learned from its own runs.
    assert other.tuner.last.cost.classes


def test_what_is_decided_is_kept_and_only_then_written(plane: Plane, tmp_path: Path) -> None:
    version = contested(plane)
    now = 0.0
    contests = CoreContests(plane.registry, clock=lambda: now)
    learner = Learning(plane.registry, tmp_path / "learned")

    async def scenario() -> None:
        nonlocal now
        await learner.write()
        assert not (tmp_path / "learned").exists()
        while version.spare is not None:
            # As if rows had been done: more of them with the other way.
            version.statistics._rows += 200 if warm_of(version).core_use == APART else 100
            version.batcher.queue.rows = 1000
            contests.look()
            now += LOOK_SECONDS
        version.batcher.queue.rows = 0
        contests.look()
        await learner.write()

    asyncio.run(scenario())
    assert warm_of(version).core_use == APART
    assert batcher_of(version)._max_runs == 2
    assert version.session is warm_of(version).session


@pytest.mark.parametrize("is_own", [True, False])
def test_a_version_that_goes_takes_both_ways_along(plane: Plane, tmp_path: Path, *, is_own: bool) -> None:
    version = contested(plane)
    assert version.spare is not None
    if is_own:
        write_version(tmp_path / "other", "m", "1", onnx_models.affine())
        with plane_over(tmp_path / "other", tmp_path) as elsewhere:
            session = onnx_session_of(elsewhere.registry.get("m", "1"))
        warm = warm_of(version)
        version.spare = WarmModel(session, warm.layout, APART, warm.tuner, warm.circumstances)
    spare = version.spare.session
    asyncio.run(version.close())
    assert spare.warm_up() is None
    assert onnx_session_of(version).warm_up() is None
