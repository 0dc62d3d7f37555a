"""The full data sets behind the bundled models, as `fetch_data.py` leaves them in `.data/`.

Each function gives the rows of one year in an order shuffled by SEED, so the first n rows are a random sample, and the
extract committed under `models/<name>/data/` is the beginning of the full data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from gateway.types import Array

SEED = 20150101

EMPLOYMENT_YEARS = range(2015, 2019)
EMPLOYMENT_REFERENCE = "employment_MA_reference.pq"
EMPLOYMENT_ANALYSIS = "employment_MA_analysis.pq"
EMPLOYMENT_TARGET = "employment_MA_analysis_target.pq"
EMPLOYMENT_COLUMNS = (
    *("AGEP", "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG"),
    *("MIL", "ANC", "NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P"),
)

ACCIDENT_YEARS = range(2016, 2022)
ACCIDENTS = "US_Accidents_extract.csv"
ACCIDENT_COLUMNS = {
    "lat": "Start_Lat",
    "lng": "Start_Lng",
    "distance_mi": "Distance(mi)",
    "temperature_f": "Temperature(F)",
    "humidity_pct": "Humidity(%)",
    "visibility_mi": "Visibility(mi)",
    "day_of_week": "day_of_week_acc",
    "twilight": "Nautical_Twilight",
    "season": "season_acc",
}


def employment(year: int, data: Path) -> dict[str, Array]:
    """16 ACS codes and `label` (1: employed) of one survey year, all UINT8. Raises `FileNotFoundError`."""
    if year == EMPLOYMENT_YEARS[0]:
        table = pq.read_table(data / EMPLOYMENT_REFERENCE)
    else:
        answers = pq.read_table(data / EMPLOYMENT_TARGET)
        table = pq.read_table(data / EMPLOYMENT_ANALYSIS).join(answers, "id").sort_by("id")
    table = shuffled(table.filter(pc.field("year") == year))
    # The source keeps codes as categories of strings, the age as a float.
    codes = {name: table[name].cast(pa.string()).cast(pa.float64()) for name in EMPLOYMENT_COLUMNS}
    columns = codes | {"label": table["employed"]}
    return {name: column.to_numpy().astype(np.uint8) for name, column in columns.items()}


def accidents(year: int, data: Path) -> dict[str, Array]:
    """Six FP32 measurements, three strings and `label` (1: severe) of one year. Raises `FileNotFoundError`.

    Rows with a missing value are left out: JSON has no NaN, so they could not be sent as a request.
    """
    source = [*ACCIDENT_COLUMNS.values(), "target", "year_acc"]
    options = pyarrow.csv.ConvertOptions(include_columns=source, column_types={"day_of_week_acc": pa.string()})
    table = pyarrow.csv.read_csv(data / ACCIDENTS, convert_options=options)
    table = shuffled(table.filter(pc.field("year_acc") == year).drop_null())
    columns = {name: table[column].to_numpy() for name, column in ACCIDENT_COLUMNS.items()}
    numeric = {name: array.astype(np.float32) for name, array in columns.items() if array.dtype.kind == "f"}
    return columns | numeric | {"label": table["target"].to_numpy().astype(np.uint8)}


def shuffled(table: pa.Table) -> pa.Table:
    """The rows in the order of a permutation that depends on SEED and the row count alone."""
    return table.take(np.random.default_rng(SEED).permutation(table.num_rows))
