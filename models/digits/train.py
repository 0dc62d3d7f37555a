"""Which digit does an 8x8 image show? A small neural network, trained by `python models/digits/train.py`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gateway.packaging import (
    canonical_onnx,
    classification_metrics,
    code_record,
    export_classifier,
    output_folder,
    pin_environment,
    publish_version,
    reference_answers,
)
from gateway.runtime.manifest import DataRecord, Feature, Prediction, sha256_of
from gateway.types import TensorSpec

SEED = 7
SCRIPT = Path(__file__).resolve()
SIDE = 8
TRAINING_ROWS = 1_000
PIXELS = TensorSpec("pixels", "FP32", (-1, SIDE * SIDE))
FEATURES = tuple(
    Feature(name=f"pixel_{row}_{column}", input="image", column=SIDE * row + column, kind="numeric")
    for row in range(SIDE)
    for column in range(SIDE)
)


def neural_network() -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=300, random_state=SEED))


def with_image_input(model: Any) -> Any:
    """The model with an input `image` [-1, 8, 8] that is flattened into its `pixels` [-1, 64]."""
    flat = helper.make_tensor("flat_shape", TensorProto.INT64, [2], [-1, SIDE * SIDE])
    model.graph.initializer.append(flat)
    reshape = helper.make_node("Reshape", ["image", flat.name], [PIXELS.name], name="flatten")
    model.graph.node.insert(0, reshape)
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, SIDE, SIDE]))
    return model


def main() -> None:
    folder = output_folder(SCRIPT)
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    rows, label = digits.data[order].astype(np.float32), digits.target[order]
    classifier = neural_network().fit(rows[:TRAINING_ROWS], label[:TRAINING_ROWS])
    probability = classifier.predict_proba(rows[TRAINING_ROWS:])
    pixels = rows[TRAINING_ROWS:].astype(np.uint8)
    held_out = {feature.name: pixels[:, feature.column] for feature in FEATURES}
    with as_file(files("sklearn.datasets.data") / "digits.csv.gz") as archive:
        data_hash = sha256_of(archive)
    manifest = publish_version(
        folder / "1",
        model=canonical_onnx(with_image_input(export_classifier(classifier, [PIXELS], classes=10))),
        reference=held_out | reference_answers(label[TRAINING_ROWS:], probability),
        data=DataRecord(
            source="UCI Optical Recognition of Handwritten Digits, test part, in scikit-learn's digits.csv.gz",
            licence="BSD-3-Clause (scikit-learn); CC-BY-4.0 (UCI)",
            sha256=data_hash,
            rows=TRAINING_ROWS,
            selection=f"The first {TRAINING_ROWS:,} of 1,797 rows in the order of "
            f"numpy.random.default_rng({SEED}).permutation; the rest is held out as reference",
        ),
        code=code_record(SCRIPT, seed=SEED),
        features=FEATURES,
        prediction=Prediction(kind="classification", output="label", score="probability", classes=tuple("0123456789")),
        metrics=classification_metrics(label[TRAINING_ROWS:], probability),
        replace=True,
    )
    print(f"{manifest.name}/{manifest.version}: {manifest.metrics}")


if __name__ == "__main__":
    pin_environment()
    main()
