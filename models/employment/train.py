"""Is a person employed? Two versions trained on the 2015 census rows in `data/`: `python models/employment/train.py`.

Version 1 is a logistic regression, version 2 boosted trees, both on raw ACS codes. A code that training never saw
counts as none of the known ones in version 1 and as a number in version 2; neither fails on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

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
EXTRACT = SCRIPT.parent / "data" / "2015.parquet"
TRAINING_ROWS = 14_000
"""The rows of the extract are in random order; those after the training rows are held out."""

# The codes of the ACS 2015 data dictionary, with 0 for "not applicable"
# (https://www2.census.gov/programs-surveys/acs/tech_docs/pums/data_dict/PUMSDataDict15.txt).
CODES = {
    "SCHL": range(25),  # educational attainment
    "MAR": range(1, 6),  # marital status
    "RELP": range(18),  # relationship to the reference person
    "DIS": range(1, 3),  # disability
    "ESP": range(9),  # employment status of parents
    "CIT": range(1, 6),  # citizenship
    "MIG": range(4),  # lived here one year ago
    "MIL": range(5),  # military service
    "ANC": range(1, 5),  # ancestry record
    "NATIVITY": range(1, 3),
    "DEAR": range(1, 3),  # hearing difficulty
    "DEYE": range(1, 3),  # vision difficulty
    "DREM": range(3),  # cognitive difficulty
    "SEX": range(1, 3),
    "RAC1P": range(1, 10),  # race
}
INPUT = TensorSpec("features", "FP32", (-1, 1 + len(CODES)))
FEATURES = (
    Feature(name="AGEP", input=INPUT.name, column=0, kind="numeric"),
    *(
        Feature(name=name, input=INPUT.name, column=column, kind="categorical", categories=tuple(map(str, codes)))
        for column, (name, codes) in enumerate(CODES.items(), start=1)
    ),
)


def logistic_regression() -> Any:
    categories = [np.array(codes, dtype=np.float32) for codes in CODES.values()]
    one_hot = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False)
    columns = [("age", StandardScaler(), [0]), ("codes", one_hot, list(range(1, 1 + len(CODES))))]
    return make_pipeline(ColumnTransformer(columns), LogisticRegression(max_iter=1000))


def boosted_trees() -> Any:
    return HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=SEED)


def main() -> None:
    folder = output_folder(SCRIPT)
    columns = read_columns(EXTRACT)
    rows = np.column_stack([columns[feature.name] for feature in FEATURES]).astype(np.float32)
    label = columns["label"]
    held_out = {feature.name: columns[feature.name][TRAINING_ROWS:] for feature in FEATURES}
    for version, classifier in (("1", logistic_regression()), ("2", boosted_trees())):
        classifier.fit(rows[:TRAINING_ROWS], label[:TRAINING_ROWS])
        probability = classifier.predict_proba(rows[TRAINING_ROWS:])
        manifest = publish_version(
            folder / version,
            model=canonical_onnx(export_classifier(classifier, [INPUT], classes=2)),
            reference=held_out | reference_answers(label[TRAINING_ROWS:], probability),
            data=DataRecord(
                source="American Community Survey of Massachusetts, from the wheel nannyml 0.13.1",
                licence="Apache-2.0 (nannyml); U.S. Census Bureau data, public domain",
                sha256=sha256_of(EXTRACT),
                rows=TRAINING_ROWS,
                selection=f"The first {TRAINING_ROWS:,} rows of data/2015.parquet; the rest is held out as reference",
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
