from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import orjson
import pytest

from bench import zoo
from bench.zoo import Entry, body, file_of, repository, rows_of
from gateway.runtime.manifest import read_model_config


def test_a_repository_has_a_folder_for_each_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "REPOSITORIES", tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"model")

    root = repository("r", {"plain": Entry(file, versions=2), "fixed": Entry(file, "max_batch_rows = 4")})
    again = repository("r", {"plain": Entry(file)})

    assert again == root
    assert [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()] == ["plain/1/model.onnx"]
    assert file.read_bytes() == b"model"


def test_settings_are_those_that_a_gateway_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "REPOSITORIES", tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"model")

    root = repository("r", {"fixed": Entry(file, "max_batch_rows = 4")})

    assert read_model_config(root / "fixed").batching.fixed_rows == (4,)


@pytest.mark.parametrize("name", ["accidents", "digits", "employment-1", "employment-2"])
def test_a_bundled_model_takes_rows_of_its_reference(name: str) -> None:
    rows = rows_of(name, 3)

    assert len(zoo.expected(file_of(name), rows)) == 3
    assert any(len(np.unique(values, axis=0)) > 1 for values in rows.values())


def test_a_body_holds_numbers_and_strings() -> None:
    inputs = {"x": np.array([[1.5, 2]], np.float32), "s": np.array([["a"]])}

    tensors = orjson.loads(body(inputs))["inputs"]

    assert tensors == [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]},
        {"name": "s", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]},
    ]


def test_the_sequence_model_takes_any_length_and_rows_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "sequence" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    zoo.BUILDERS["sequence"](path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    for length in (1, 32, 256):
        row = zoo.sequences(length)["x"]
        (alone,) = session.run(None, {"x": row})
        (together,) = session.run(None, {"x": np.concatenate([row, row * 2])})

        assert alone.shape == (1, 2)
        np.testing.assert_allclose(together[:1], alone, rtol=1e-5)
