"""What was learned comes back as it was, and what is not to be trusted is measured anew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.runtime.learned import (
    MAX_FILE_BYTES,
    Circumstances,
    LearnedState,
    learned_file,
    read_learned,
    remember,
    write_learned,
)
from gateway.runtime.tuner import BatchPolicy, Tuner
from gateway.runtime.tuning import CoreUse
from gateway.types import ModelKey

HERE = Circumstances(sha256="0" * 64, device="cpu", onnxruntime="1.31.0", cores=2)
APART = CoreUse(2, 1)
POLICY = BatchPolicy((1, 2, 4, 8))


def experienced() -> Tuner:
    tuner = Tuner(POLICY)
    for bucket in ((), ((8,), (3, 4))):
        shape = tuner.of(bucket)
        for turn in range(40):
            rows = 1 + turn % 8
            shape.cost.observe(rows, 1e-3 * rows * (9 if turn == 20 else 1), 5e-4)
        shape.choose()
    return tuner


def written(path: Path) -> LearnedState:
    state = remember(HERE, APART, experienced())
    write_learned(path, state)
    return state


def test_what_is_written_is_read_and_predicts_the_same(tmp_path: Path) -> None:
    path = learned_file(tmp_path, ModelKey("m", "3"))
    assert path == tmp_path / "m" / "3.json"
    state = written(path)
    assert read_learned(path, HERE, [CoreUse(1, 1), APART]) == state
    before, after = experienced(), Tuner(POLICY)
    state.restore(after)
    assert list(after.shapes) == list(before.shapes)
    for bucket in list(before.shapes):
        one, other = before.of(bucket), after.of(bucket)
        assert one.rows == other.rows
        for rows in (1, 3, 8, 100):
            assert other.cost.predict(rows) == pytest.approx(one.cost.predict(rows), rel=0.05)
            assert other.cost.predict_p99(rows) == pytest.approx(one.cost.predict_p99(rows), rel=0.05)
        assert other.cost.classes == one.cost.classes
    # Nothing is left beside it.
    assert [child.name for child in path.parent.iterdir()] == ["3.json"]


def test_a_tuner_that_knows_nothing_has_nothing_of_use(tmp_path: Path) -> None:
    assert not remember(HERE, APART, Tuner(POLICY)).is_of_use
    assert remember(HERE, APART, experienced()).is_of_use
    assert read_learned(tmp_path / "m" / "1.json", HERE, [APART]) is None


@pytest.mark.parametrize(
    ("change", "core_uses", "said"),
    [
        ({"sha256": "1" * 64}, [APART], "the model, the device, the cores or ONNX Runtime's version changed"),
        ({"device": "cuda"}, [APART], "changed"),
        ({"onnxruntime": "2.0"}, [APART], "changed"),
        ({"cores": 64}, [APART], "changed"),
        ({}, [CoreUse(1, 1), CoreUse(1, 2)], "learned with 2 runs side by side on 1 thread"),
    ],
)
def test_what_was_learned_elsewhere_is_passed_over(
    change: dict[str, Any], core_uses: list[CoreUse], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    written(tmp_path / "1.json")
    assert read_learned(tmp_path / "1.json", HERE.model_copy(update=change), core_uses) is None
    assert said in caplog.text
    assert "WARNING" not in caplog.text


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(key)


def with_size(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["shapes"][0]["sizes"][0].update(change)


@pytest.mark.parametrize(
    "damage",
    [
        without("circumstances"),
        without("runs"),
        with_size(seconds=-1.0),
        with_size(seconds=0.0),
        with_size(rows="many"),
        with_size(rows="1e400"),
        with_size(runs=10**9),
        with_size(cpu_seconds=-1.0),
        with_size(note="by hand"),
        lambda document: document.update(runs=0),
        lambda document: document.update(format=2),
        lambda document: document.update(shapes=[]),
        lambda document: document.update(shapes=document["shapes"] * 100),
        lambda document: document["shapes"][0].update(pace=0.0),
        lambda document: document["shapes"][0].update(p99_ratio=0.5),
        lambda document: document["shapes"][0].update(bucket=[[-1]]),
    ],
)
def test_a_file_that_somebody_changed_is_refused_with_a_warning(
    damage: Callable[[dict[str, Any]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "1.json"
    written(path)
    document = orjson.loads(path.read_bytes())
    damage(document)
    path.write_bytes(orjson.dumps(document))
    assert read_learned(path, HERE, [APART]) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path} is not used, the version is measured anew" in record.getMessage()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b" " * (MAX_FILE_BYTES + 1)]
)
def test_a_file_that_is_no_such_document_is_refused_with_a_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.json").write_bytes(content)
    assert read_learned(tmp_path / "1.json", HERE, [APART]) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_folder_in_its_place_is_refused_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.json").mkdir()
    assert read_learned(tmp_path / "1.json", HERE, [APART]) is None
    assert "measured anew" in caplog.text


def test_writing_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "m" / "1.json"
    path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"1\.json"):
        written(path)
    assert list(path.parent.iterdir()) == [path]
