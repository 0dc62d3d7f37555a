"""A spike's memory goes back to the system, and an ordinary run's stays where it is."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np

from gateway.runtime import arena
from gateway.runtime.memory import give_back, resident_bytes
from gateway.runtime.session import OnnxSession
from tests.support import onnx_models

MIB = 2**20
SPIKE_BYTES = 8192 * onnx_models.WIDE_COLUMNS * 4


def test_the_examples_in_the_docstring_hold() -> None:
    failures, attempts = doctest.testmod(arena)
    assert attempts
    assert not failures


def session(tmp_path: Path) -> OnnxSession:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_models.wide())
    loaded = OnnxSession(path, "cpu", threads=1)
    for rows in (1, 64):
        assert loaded.warm_up(rows)
    return loaded


def run(loaded: OnnxSession, rows: int) -> None:
    loaded.run({"x": np.zeros((rows, 8), np.float32)})


def resident() -> int:
    give_back()
    return resident_bytes()


def test_after_a_spike_the_process_is_as_small_as_before(tmp_path: Path) -> None:
    loaded = session(tmp_path)
    before = resident()
    run(loaded, 8192)
    # Its hidden layer alone took SPIKE_BYTES.
    assert resident() - before < SPIKE_BYTES / 4


def test_a_size_that_comes_all_the_time_keeps_its_memory_until_it_stops(tmp_path: Path) -> None:
    loaded = session(tmp_path)
    before = resident()
    for _ in range(20):
        run(loaded, 8192)
    assert resident() - before > SPIKE_BYTES / 2
    for _ in range(100):
        run(loaded, 1)
    assert resident() - before < SPIKE_BYTES / 4
