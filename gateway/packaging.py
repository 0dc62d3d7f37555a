"""Publishes a trained model as a version folder that the gateway serves and the collector can judge.

The rule of this file: the same data, code and libraries give the same bytes. Nothing written holds a time, a path or a
random name, so a retrained version can be compared with the served one by its hash.

    pin_environment()
    rows = read_columns(folder / "data" / "2015.parquet")
    ...
    publish_version(out / "employment" / "1", model=export_classifier(...), reference=..., ...)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.runtime.manifest import (
    LABEL_COLUMN,
    MANIFEST_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    SCORE_COLUMN,
    TRUTH_COLUMN,
    CodeRecord,
    DataRecord,
    Feature,
    FileRecord,
    Manifest,
    Prediction,
    sha256_of,
)
from gateway.types import Array, TensorSpec

OPSETS = {"": 18, "ai.onnx.ml": 3}
IR_VERSION = 9
"""Fixed, not the exporter's newest: the bytes stay, and ONNX Runtime reads these since 1.16
(https://onnxruntime.ai/docs/reference/compatibility.html)."""

LIBRARIES = ("numpy", "onnx", "pyarrow", "scikit-learn", "scipy", "skl2onnx")
"""The distributions that shape what the functions below write."""


def pinned_environment() -> dict[str, str]:
    """One thread, since sums in another order give other last bits, and the kernels that x86-64 machines share.

    The list of AVX-512 kernels depends on the installed numpy, not on the machine.
    """
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    kernels = {*extensions.get("found", ()), *extensions.get("not found", ())}
    return {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": " ".join(sorted(k for k in kernels if k.startswith(("AVX512", "X86_V4")))),
    }


def pin_environment() -> None:
    """Restart the running script so that training gives the same bits on every x86-64 machine with AVX2.

    The numeric libraries read these variables when they are first imported, so setting `os.environ` would be too late.
    """
    pinned = pinned_environment()
    if pinned.items() <= os.environ.items():
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **pinned})  # noqa: S606


def output_folder(script: Path) -> Path:
    """The model's folder: that of its `train.py`, or the one of the same name under `--out` of the command line."""
    parser = argparse.ArgumentParser(description="Train all versions of this model and publish them.")
    parser.add_argument("--out", type=Path, default=script.parent.parent, help="models folder to write to")
    return Path(parser.parse_args().out) / script.parent.name


def publish_version(
    folder: Path,
    *,
    model: bytes,
    reference: Mapping[str, Array],
    data: DataRecord,
    code: CodeRecord,
    features: Sequence[Feature],
    prediction: Prediction,
    metrics: Mapping[str, float],
    external: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> Manifest:
    """Write `<name>/<version>/{model.onnx, reference.parquet, manifest.json}`; the folder appears whole or not at all.

    `external` are the files with the model's larger tensors, by the names that it has for them (ONNX external data).

    `reference` has a 1-D array per feature and `prediction.label`, where they apply also `prediction.score` (two
    classes: probability of the second; more: of the answer; values in [0, 1]) and `truth.label`.

    Publishing the same bytes again changes nothing. Other bytes raise `FileExistsError` unless `replace`, and then
    everything that was found out about the old version, such as its validation report, goes with it. A reference that
    does not fit the features raises `ValueError`.
    """
    check_reference(reference, features)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A hidden sibling: on the same file system, so that the rename is atomic, and not taken for a version.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staged = Path(scratch) / "new"
        staged.mkdir()
        (staged / MODEL_FILE).write_bytes(model)
        for name, content in (external or {}).items():
            (staged / name).write_bytes(content)
        write_columns(staged / REFERENCE_FILE, reference)
        manifest = Manifest(
            name=folder.parent.name,
            version=folder.name,
            model=file_record(staged / MODEL_FILE),
            reference=file_record(staged / REFERENCE_FILE),
            external=tuple(file_record(staged / name) for name in sorted(external)) if external else None,
            data=data,
            code=code,
            features=tuple(features),
            prediction=prediction,
            metrics=dict(metrics),
            example=example_row(reference, features),
        )
        (staged / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))
        if not is_same_version(staged, folder, external or ()):
            swap_in(staged, folder, replaced=Path(scratch) / "old" if replace else None)
    return manifest


def check_reference(reference: Mapping[str, Array], features: Sequence[Feature]) -> None:
    """Raise `ValueError` unless every feature and the answer have a column, and all columns have the same rows."""
    names = [feature.name for feature in features]
    allowed = {*names, LABEL_COLUMN, SCORE_COLUMN, TRUTH_COLUMN}
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"features named twice: {', '.join(duplicates)}")
    if missing := [name for name in (*names, LABEL_COLUMN) if name not in reference]:
        raise ValueError(f"reference lacks the columns {', '.join(missing)}")
    if unknown := sorted(reference.keys() - allowed):
        raise ValueError(f"reference has columns that are no feature: {', '.join(unknown)}")
    shapes = {array.shape for array in reference.values()}
    if len(shapes) != 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"reference columns must be 1-D and equally long, not {sorted(shapes)}")


def example_row(reference: Mapping[str, Array], features: Sequence[Feature]) -> dict[str, list[float | str]]:
    """The first reference row as values for each input, in row-major order."""
    row: dict[str, list[float | str]] = {}
    for feature in sorted(features, key=lambda feature: (feature.input, feature.column)):
        value = reference[feature.name][0]
        # 32.9 as FP32 is 32.900001525878906 as a Python float; seven digits say the same.
        plain = float(f"{value:.7g}") if isinstance(value, np.floating) else reference[feature.name].tolist()[0]
        row.setdefault(feature.input, []).append(plain)
    return row


def is_same_version(staged: Path, folder: Path, external: Iterable[str] = ()) -> bool:
    """The manifest holds the hash of the other files, but these could have been changed by hand since."""
    names = (MODEL_FILE, REFERENCE_FILE, MANIFEST_FILE, *external)
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == (staged / name).read_bytes() for name in names
    )


def swap_in(staged: Path, folder: Path, replaced: Path | None) -> None:
    """Rename the staged folder into place; an existing one moves to `replaced`, or stops us."""
    if folder.exists():
        if replaced is None:
            raise FileExistsError(f"{folder} holds another model: publish under a new version, or pass replace=True")
        folder.rename(replaced)
    staged.rename(folder)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Sorted keys, two spaces, a newline at the end: readable in a diff."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(manifest.model_dump(mode="json", exclude_none=True), option=options)


def file_record(path: Path) -> FileRecord:
    """The file's name, without its folder, and its hash."""
    return FileRecord(file=path.name, sha256=sha256_of(path))


def code_record(script: Path, *, seed: int, libraries: Iterable[str] = LIBRARIES) -> CodeRecord:
    """The training script and the installed versions of the distributions that shape its result."""
    versions = {name: installed_version(name) for name in sorted(libraries)}
    return CodeRecord(file=script.name, sha256=sha256_of(script), seed=seed, libraries=versions)


def write_columns(path: Path, columns: Mapping[str, Array]) -> None:
    """A Parquet file of 1-D arrays; integers shrink to the smallest type that fits, `object` arrays hold `str`."""
    table = pa.table({name: pa.array(shrink(array)) for name, array in columns.items()})
    pq.write_table(
        table, path, version="2.6", compression="zstd", compression_level=19, write_statistics=False, store_schema=False
    )


def shrink(array: Array) -> Array:
    """The same integers in fewer bytes; other kinds as they are."""
    if array.dtype.kind not in "iu" or not array.size:
        return array
    return array.astype(np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))


def read_columns(path: Path) -> dict[str, Array]:
    """What `write_columns` wrote: numeric columns as numpy arrays, string columns as `object` arrays of `str`."""
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def export_classifier(pipeline: Any, inputs: Sequence[TensorSpec], classes: int) -> Any:
    """A fitted scikit-learn classifier as an `onnx.ModelProto`. Needs the `validation` extra.

    The pipeline sees the columns of all inputs (FP32 or BYTES, shape [-1, n]) side by side. The outputs are `label`
    INT64 [-1] and `probability` FP32 [-1, classes].
    """
    from skl2onnx import convert_sklearn  # noqa: PLC0415 - the only part of this file that needs an exporter.
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType  # noqa: PLC0415
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415

    kinds = {"FP32": FloatTensorType, "BYTES": StringTensorType}
    return convert_sklearn(
        pipeline,
        name="classifier",
        initial_types=[(spec.name, kinds[spec.datatype]([None, *spec.shape[1:]])) for spec in inputs],
        final_types=[("label", Int64TensorType([None])), ("probability", FloatTensorType([None, classes]))],
        options={id(pipeline): {"zipmap": False}},
        custom_conversion_functions={HistGradientBoostingClassifier: convert_boosted_trees},
        target_opset=OPSETS,
    )


def convert_boosted_trees(scope: Any, operator: Any, container: Any) -> None:
    """The converter of skl2onnx, with its booleans as the integers that ONNX has in their place.

    skl2onnx 1.20 marks missing values on leaves with `False`, which protobuf refuses as an int since 7.34.
    """
    from skl2onnx.operator_converters.random_forest import (  # noqa: PLC0415 - as in export_classifier.
        convert_sklearn_random_forest_classifier,
    )

    convert_sklearn_random_forest_classifier(scope, operator, IntegerFlags(container))


class IntegerFlags:
    """A skl2onnx container whose nodes get integers for booleans."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def add_node(self, *args: Any, nodes_missing_value_tracks_true: Sequence[int] = (), **attributes: Any) -> None:
        if nodes_missing_value_tracks_true:
            attributes["nodes_missing_value_tracks_true"] = [int(flag) for flag in nodes_missing_value_tracks_true]
        self.container.add_node(*args, **attributes)


def canonical_onnx(model: Any) -> bytes:
    """The bytes of an `onnx.ModelProto` without what varies between exporters: producer, versions, comments."""
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version", "metadata_props"):
        model.ClearField(field)
    model.graph.ClearField("doc_string")
    for node in model.graph.node:
        node.ClearField("doc_string")
    model.ir_version = IR_VERSION
    return bytes(model.SerializeToString(deterministic=True))


def classification_metrics(truth: Array, probability: Array) -> dict[str, float]:
    """Accuracy, log loss and row count of `probability` [rows, classes] for classes 0, 1, ...; two classes: also AUC.

    Rounded to six digits, the last that are the same on every machine. Needs the `validation` extra.
    """
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score  # noqa: PLC0415 - as in export_classifier.

    classes = probability.shape[1]
    metrics = {
        "accuracy": accuracy_score(truth, probability.argmax(axis=1)),
        "log_loss": log_loss(truth, probability, labels=range(classes)),
        "n": len(truth),
    }
    if classes == 2:
        metrics["auc"] = roc_auc_score(truth, probability[:, 1])
    return {name: round(float(value), 6) for name, value in metrics.items()}


def reference_answers(truth: Array, probability: Array) -> dict[str, Array]:
    """The columns of the reference that are no feature, for `probability` [rows, classes] of classes 0, 1, ..."""
    score = probability[:, 1] if probability.shape[1] == 2 else probability.max(axis=1)
    return {
        LABEL_COLUMN: probability.argmax(axis=1),
        SCORE_COLUMN: score.astype(np.float32),
        TRUTH_COLUMN: truth,
    }
