from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import StartupError
from gateway.runtime.manifest import BatchingConfig, ModelConfig, read_manifest, read_model_config, sha256_of
from tests.support.manifests import manifest_document


def write_config(folder: Path, text: str | bytes) -> Path:
    (folder / "model.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def write_manifest(tmp_path: Path, document: Any) -> Path:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(document if isinstance(document, bytes) else orjson.dumps(document))
    return folder


def test_a_model_without_a_file_of_its_own_gets_the_defaults(tmp_path: Path) -> None:
    assert read_model_config(tmp_path) == ModelConfig()


def test_what_the_file_says_is_taken_and_the_rest_is_default(tmp_path: Path) -> None:
    config = read_model_config(write_config(tmp_path, "[batching]\nmax_batch_rows = 7\n"))
    assert config.batching == BatchingConfig(max_batch_rows=7)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batching = ", "model.toml"),
        (b"\xff\xfe", "model.toml"),
        ("[batching]\nmax_batch = 7\n", "batching.max_batch"),
        ("[batching]\nmax_batch_rows = 0\n", "batching.max_batch_rows"),
        ('[batching]\nmax_queue_rows = "many"\n', "batching.max_queue_rows"),
        ("[batching]\nmax_request_rows = -1\n", "batching.max_request_rows"),
        ("[monitoring]\nwindow_seconds = 0\n", "monitoring.window_seconds"),
        ("[monitoring]\nmin_rows = 5\n", "monitoring.min_rows"),
        ("[batching.axes]\nx = -1\n", "batching.axes.x"),
        ("[batching]\ntolerance = 1.0\n", "batching.tolerance"),
        ("[batching]\nbatchable = false\naxes = { x = 0 }\n", "axes cannot take effect"),
        ("[batching]\nbatchable = false\nmax_batch_rows = 8\n", "max_batch_rows cannot take effect"),
        ("[padding]\nlengths = [4]\n", "padding.inputs: "),
        ("[padding]\nlengths = []\n[padding.inputs.x]\naxis = 1\n", "padding.lengths: "),
        ("[padding]\nlengths = [0]\n[padding.inputs.x]\naxis = 1\n", "padding.lengths.0: "),
        ("[padding]\nlengths = [4, 2]\n[padding.inputs.x]\naxis = 1\n", "lengths are not ascending: [4, 2]"),
        ("[padding]\nlengths = [2, 2]\n[padding.inputs.x]\naxis = 1\n", "lengths are not ascending: [2, 2]"),
        ('[padding]\nlengths = [2]\nmask = "x"\n[padding.inputs.x]\naxis = 1\n', "'x' is either the mask or an input"),
        ("[padding]\nlengths = [2]\ninputs = {}\n", "padding.inputs: "),
        (
            "[batching]\nmax_batch_rows = 1\n[padding]\nlengths = [2]\n[padding.inputs.x]\naxis = 1\n",
            "padding is for requests that share a run",
        ),
        ("[batch]\n", "batch: "),
        ("batching = 7\n", "batching: "),
    ],
)
def test_a_mistake_in_model_toml_names_file_and_key(tmp_path: Path, text: str | bytes, named: str) -> None:
    with pytest.raises(StartupError) as caught:
        read_model_config(write_config(tmp_path, text))
    assert "model.toml: " in str(caught.value)
    assert named in str(caught.value)


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


def test_a_manifest_is_read_whole(tmp_path: Path) -> None:
    manifest = read_manifest(write_manifest(tmp_path, manifest_document("m", "1")))
    assert manifest is not None
    assert (manifest.name, manifest.version, manifest.prediction.output) == ("m", "1", "label")


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (b"{", "manifest.json: "),
        (b"\xff", "manifest.json: "),
        ([], "document: "),
        ({}, "name: Field required"),
        (manifest_document("m", "1", model={"file": "model.onnx", "sha256": "AB"}), "model.sha256: "),
        (manifest_document("m", "1", extra=1), "extra: "),
        (manifest_document("m", "1", prediction={"kind": "guess", "output": "y"}), "prediction.kind: "),
        (manifest_document("m", "2"), "describes m/2 but lies in m/1"),
        (manifest_document("n", "1"), "describes n/1 but lies in m/1"),
    ],
)
def test_a_mistake_in_the_manifest_names_file_and_key(tmp_path: Path, document: Any, named: str) -> None:
    with pytest.raises(StartupError) as caught:
        read_manifest(write_manifest(tmp_path, document))
    assert "manifest.json: " in str(caught.value)
    assert named in str(caught.value)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
