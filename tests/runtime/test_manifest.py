from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import StartupError
from gateway.runtime.manifest import (
    LEARNED_ROWS_LIMIT,
    BatchingConfig,
    ModelConfig,
    read_manifest,
    read_model_config,
    sha256_of,
)
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
    ("batching", "limit"),
    [
        (BatchingConfig(), LEARNED_ROWS_LIMIT),
        (BatchingConfig(max_queue_rows=100), 100),
        (BatchingConfig(max_batch_rows=1000), 1000),
        (BatchingConfig(preferred_batch_rows=(4, 12)), 12),
    ],
)
def test_the_rows_of_a_run_are_limited_by_what_is_said_or_by_what_may_be_learned(
    batching: BatchingConfig, limit: int
) -> None:
    assert batching.rows_limit == limit


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batching = ", "model.toml"),
        (b"\xff\xfe", "model.toml"),
        ("[batching]\nmax_batch = 7\n", "batching.max_batch"),
        ("[batching]\nmax_batch_rows = 0\n", "batching.max_batch_rows"),
        ("[batching]\nslo_ms = 0\n", "batching.slo_ms"),
        ("[batching]\nslo_ms = nan\n", "batching.slo_ms"),
        ("[batching]\nmax_delay_ms = -1\n", "batching.max_delay_ms"),
        ("[batching]\npreferred_batch_rows = []\n", "batching.preferred_batch_rows"),
        ("[batching]\npreferred_batch_rows = [8, 0]\n", "batching.preferred_batch_rows.1"),
        ("[batching]\npreferred_batch_rows = [8, 4]\n", "preferred_batch_rows must ascend"),
        ("[batching]\npreferred_batch_rows = [8, 8]\n", "preferred_batch_rows must ascend"),
        ("[batching]\ninstances = 0\n", "batching.instances"),
        ("[batching]\nthreads = 0\n", "batching.threads"),
        ("[batching]\nthreads = 100000\n", "batching.threads"),
        ("[batching]\nmax_batch_rows = 8\npreferred_batch_rows = [8]\n", "leave max_batch_rows out"),
        ("[batching]\nmax_batch_rows = 8\nslo_ms = 5\n", "fixed at 8; give one of the two"),
        ("[batching]\npreferred_batch_rows = [8]\nslo_ms = 5\n", "fixed at 8; give one of the two"),
        ("[batching]\nmax_batch_rows = 9\nmax_queue_rows = 8\n", "cannot get 9 rows while max_queue_rows is 8"),
        ("[batching]\nslo_ms = 5\nmax_delay_ms = 5\n", "cannot be kept after a delay of 5 ms"),
        ("[batching]\nmax_batch_rows = 1\nmax_delay_ms = 5\n", "max_delay_ms waits for more rows"),
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
        ("[runtime]\ncuda_graph = true\n", "runtime.cuda_graph"),
        ('[runtime]\ntensorrt = "int8"\n', "runtime.tensorrt"),
        ("[runtime]\ncuda_graphs = true\nio_binding = false\n", "runtime: Value error, cuda_graphs needs io_binding"),
        ('[runtime]\ncuda_graphs = true\ntensorrt = "fp16"\n', "which tensorrt takes from it; choose one"),
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
