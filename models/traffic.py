"""Rows with known answers to send to the bundled models, for the demo and the tests.

The year that trained a model gives its held-out rows, the later years what it met afterwards: for `employment` much the
same, for `accidents` another world. The full data in `.data/` is used where it is present, else the committed extracts,
which hold the first rows of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.packaging import read_columns
from gateway.runtime.manifest import REFERENCE_FILE, TRUTH_COLUMN, Feature, read_manifest
from gateway.types import Array
from models import sources
from models.fetch_data import DATA

MODELS = Path(__file__).resolve().parent


class Rows(NamedTuple):
    """Input tensors ready for the wire, axis 0 is the row, and the right answer of each row as INT64."""

    inputs: dict[str, Array]
    labels: Array


def employment(year: int, data: Path = DATA) -> Rows:
    """`features` FP32 [n, 16]; 2015 is held out from training, 2016-2018 are live. Raises `ValueError`."""
    check_year(year, sources.EMPLOYMENT_YEARS)
    if year == sources.EMPLOYMENT_YEARS[0]:
        return held_out("employment")
    is_full = (data / sources.EMPLOYMENT_ANALYSIS).exists() and (data / sources.EMPLOYMENT_TARGET).exists()
    return live("employment", sources.employment(year, data) if is_full else extract("employment", year))


def accidents(year: int, data: Path = DATA) -> Rows:
    """`numeric` FP32 [n, 6], `categorical` BYTES [n, 3]; 2016 is held out, 2017-2021 are live. Raises `ValueError`."""
    check_year(year, sources.ACCIDENT_YEARS)
    if year == sources.ACCIDENT_YEARS[0]:
        return held_out("accidents")
    is_full = (data / sources.ACCIDENTS).exists()
    return live("accidents", sources.accidents(year, data) if is_full else extract("accidents", year))


def digits() -> Rows:
    """`image` FP32 [797, 8, 8], grey levels 0 to 16: the rows held out from training."""
    rows = held_out("digits")
    return Rows({"image": rows.inputs["image"].reshape(-1, 8, 8)}, rows.labels)


def check_year(year: int, years: range) -> None:
    if year not in years:
        raise ValueError(f"there are no rows of {year}: choose from {years[0]} to {years[-1]}")


def extract(model: str, year: int) -> dict[str, Array]:
    return read_columns(MODELS / model / "data" / f"{year}.parquet")


def held_out(model: str) -> Rows:
    columns = read_columns(MODELS / model / "1" / REFERENCE_FILE)
    return Rows(tensors(model, columns), columns[TRUTH_COLUMN].astype(np.int64))


def live(model: str, columns: dict[str, Array]) -> Rows:
    return Rows(tensors(model, columns), columns["label"].astype(np.int64))


def tensors(model: str, columns: dict[str, Array]) -> dict[str, Array]:
    """One array [n, features] for each input, in the order that the manifest gives its features."""
    manifest = read_manifest(MODELS / model / "1")
    if manifest is None:
        raise FileNotFoundError(f"models/{model}/1 has no manifest: run models/{model}/train.py")
    by_input: dict[str, list[Feature]] = {}
    for feature in manifest.features:
        by_input.setdefault(feature.input, []).append(feature)
    return {name: stack([columns[feature.name] for feature in features]) for name, features in by_input.items()}


def stack(columns: list[Array]) -> Array:
    """Columns side by side: strings as objects, everything else as FP32."""
    is_text = columns[0].dtype == object
    return np.column_stack(columns) if is_text else np.column_stack(columns).astype(np.float32)
