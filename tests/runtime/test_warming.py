"""A version is run as its `model.toml` and what was learned before say; what cannot take effect is refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.runtime.learned import learned_file, write_learned
from gateway.runtime.manifest import LEARNED_ROWS_LIMIT
from gateway.runtime.repository import VersionFolder, scan
from gateway.runtime.tuning import CoreUse
from gateway.runtime.warming import TRIAL_BYTES, Trial, warm_model
from tests.support import onnx_models
from tests.support.onnx_models import write_version


def version(models: Path, content: bytes, batching: str = "") -> VersionFolder:
    write_version(models, "m", "1", content, toml=f"[batching]\n{batching}\n")
    (folder,) = scan(models)
    return folder


def test_a_fast_model_gets_one_thread_and_what_was_measured(tmp_path: Path) -> None:
    warm = warm_model(version(tmp_path, onnx_models.affine()), "cpu", 0, None)
    assert warm.core_use == CoreUse(1, 1)
    shape = warm.tuner.last
    assert 1 < shape.rows <= LEARNED_ROWS_LIMIT
    assert [round(size.rows) for size in shape.cost.classes] == [2**power for power in range(9)]
    assert 0 < shape.cost.predict(shape.rows) < 0.1


@pytest.mark.parametrize(
    ("batching", "threads", "core_use", "sizes"),
    [
        ("max_batch_rows = 7", 1, CoreUse(1, 1), (7,)),
        ("preferred_batch_rows = [3, 6]", 1, CoreUse(1, 1), (3, 6)),
        ("max_queue_rows = 5", 1, CoreUse(1, 1), (1, 2, 4)),
        ("instances = 2", 1, CoreUse(2, 1), None),
        ("instances = 2\nthreads = 3", 0, CoreUse(2, 3), None),
        # The model's own comes before the gateway's.
        ("instances = 1\nthreads = 2", 1, CoreUse(1, 2), None),
        ("", 3, CoreUse(1, 3), None),
    ],
)
def test_what_operators_fix_is_so(
    batching: str, threads: int, core_use: CoreUse, sizes: tuple[int, ...] | None, tmp_path: Path
) -> None:
    warm = warm_model(version(tmp_path, onnx_models.affine(), batching), "cpu", threads, None)
    assert warm.core_use == core_use
    if sizes is not None:
        assert warm.tuner.policy.sizes == sizes
        assert warm.tuner.last.rows in sizes


def test_the_delay_comes_off_the_target(tmp_path: Path) -> None:
    warm = warm_model(version(tmp_path, onnx_models.affine(), "slo_ms = 25\nmax_delay_ms = 5"), "cpu", 1, None)
    assert warm.tuner.policy.slo == pytest.approx(0.020)


def test_a_target_out_of_reach_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warm_model(version(tmp_path, onnx_models.affine(), "slo_ms = 0.0001"), "cpu", 1, None)
    assert "m/1: slo_ms cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("content", "batching", "said"),
    [
        (onnx_models.fixed_rows(), "slo_ms = 5", "batching.slo_ms has no effect"),
        (onnx_models.fixed_rows(), "max_batch_rows = 8", "batching.max_batch_rows has no effect"),
        (onnx_models.fixed_rows(), "preferred_batch_rows = [8]", "batching.preferred_batch_rows has no effect"),
        (onnx_models.fixed_rows(), "max_delay_ms = 1", "batching.max_delay_ms has no effect"),
        (onnx_models.affine(), "instances = 5000", "batching.instances is 5000, and this machine runs at most"),
    ],
)
def test_what_cannot_take_effect_is_refused(content: bytes, batching: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=said):
        warm_model(version(tmp_path, content, batching), "cpu", 1, None)


@pytest.mark.parametrize("batching", ["", "max_batch_rows = 1", "max_delay_ms = 0"])
def test_a_model_without_a_row_axis_runs_one_request_at_a_time(batching: str, tmp_path: Path) -> None:
    warm = warm_model(version(tmp_path, onnx_models.fixed_rows(), batching), "cpu", 1, None)
    assert warm.tuner.policy.sizes == (1,)


def test_rows_that_take_much_memory_are_not_tried_before_there_is_traffic(tmp_path: Path) -> None:
    size = TRIAL_BYTES // 4 // 10
    warm = warm_model(version(tmp_path, onnx_models.identity("FP32", ("n", size))), "cpu", 1, None)
    assert max(round(one.rows) for one in warm.tuner.last.cost.classes) <= 8
    assert warm.tuner.policy.sizes[-1] == LEARNED_ROWS_LIMIT


def test_fixed_rows_that_take_much_memory_are_not_tried_either(tmp_path: Path) -> None:
    wide = onnx_models.identity("FP32", ("n", TRIAL_BYTES // 4))
    warm = warm_model(version(tmp_path, wide, "max_batch_rows = 3000"), "cpu", 1, None)
    assert [size.rows for size in warm.tuner.last.cost.classes] == [1]
    assert warm.tuner.last.rows == 3000


def test_a_model_that_refuses_zeros_may_take_all_rows(tmp_path: Path) -> None:
    warm = warm_model(version(tmp_path, onnx_models.pairs()), "cpu", 0, None)
    assert warm.tuner.last.rows == LEARNED_ROWS_LIMIT
    assert warm.tuner.last.cost.predict(1) == math.inf
    assert not warm.state().is_of_use


def test_what_was_learned_before_is_taken_over_instead_of_measuring(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = version(tmp_path / "models", onnx_models.affine())
    first = warm_model(folder, "cpu", 0, tmp_path)
    # No measurement would find this.
    for _ in range(100):
        for rows in first.tuner.policy.sizes:
            first.tuner.last.cost.observe(rows, 0.5 * rows * (1 if rows <= 4 else 3), 0.5)
    first.tuner.last.choose()
    assert first.tuner.last.rows in {1, 2, 4}
    write_learned(learned_file(tmp_path, folder.key), first.state())
    again = warm_model(folder, "cpu", 0, tmp_path)
    assert again.tuner.last.rows == first.tuner.last.rows
    assert again.tuner.last.cost.predict(4) == pytest.approx(first.tuner.last.cost.predict(4))
    assert again.core_use == first.core_use
    # With other threads it says nothing.
    assert warm_model(folder, "cpu", 2, tmp_path).tuner.last.cost.predict(4) < 0.1
    # Nor about another file.
    (folder.model_path).write_bytes(onnx_models.affine(3.0))
    assert warm_model(folder, "cpu", 0, tmp_path).tuner.last.cost.predict(4) < 0.1
    assert "learned with" in caplog.text
    assert "changed" in caplog.text


def test_sessions_that_were_only_measured_are_closed(tmp_path: Path) -> None:
    trial = Trial(version(tmp_path, onnx_models.affine()), "cpu", 0)
    kept, dropped = trial.session(1), trial.session(2)
    warm = trial.keep({CoreUse(1, 1): trial.tuner()})
    assert warm.session is kept
    assert kept.warm_up() is not None
    assert dropped.warm_up() is None
