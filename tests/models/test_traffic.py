from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp

from gateway.packaging import read_columns
from gateway.types import Array
from models import sources, traffic

MODELS = Path(traffic.__file__).parent


def form(arrays: dict[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(array.dtype), array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize(("year", "rows"), [(2015, 10_000), (2016, 8_000), (2017, 8_000), (2018, 8_000)])
def test_employment_rows_of_a_fresh_clone(tmp_path: Path, year: int, rows: int) -> None:
    inputs, labels = traffic.employment(year, data=tmp_path)
    assert form(inputs) == {"features": ("float32", (rows, 16))}
    assert form({"labels": labels}) == {"labels": ("int64", (rows,))}
    assert 0.45 < labels.mean() < 0.55


@pytest.mark.parametrize(
    ("year", "rows"), [(2016, 3_000), (2017, 4_000), (2018, 4_000), (2019, 4_000), (2020, 4_000), (2021, 4_000)]
)
def test_accident_rows_of_a_fresh_clone(tmp_path: Path, year: int, rows: int) -> None:
    inputs, labels = traffic.accidents(year, data=tmp_path)
    assert form(inputs) == {"numeric": ("float32", (rows, 6)), "categorical": ("object", (rows, 3))}
    assert labels.shape == (rows,)
    assert np.isfinite(inputs["numeric"]).all()
    assert orjson.dumps(inputs["categorical"][0].tolist())


def test_digits_rows() -> None:
    inputs, labels = traffic.digits()
    assert form(inputs) == {"image": ("float32", (797, 8, 8))}
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("rows", [traffic.employment, traffic.accidents])
def test_a_year_without_rows_is_refused(tmp_path: Path, rows: Callable[..., traffic.Rows]) -> None:
    with pytest.raises(ValueError, match="no rows of 2030: choose from 201"):
        rows(2030, data=tmp_path)


@pytest.mark.parametrize("year", [2016, 2017, 2018])
def test_the_census_years_are_alike(year: int) -> None:
    """The demo's promise that `employment` must not alarm."""
    reference = read_columns(MODELS / "employment" / "1" / "reference.parquet")
    live = traffic.extract("employment", year)
    assert ks_2samp(reference["AGEP"], live["AGEP"], method="asymp").statistic < 0.03


def test_the_accident_years_are_not() -> None:
    """The demo's promise that `accidents` must alarm."""
    reference = read_columns(MODELS / "accidents" / "1" / "reference.parquet")
    distance = {
        (year, name): ks_2samp(reference[name], traffic.extract("accidents", year)[name], method="asymp").statistic
        for year, name in ((2018, "temperature_f"), (2019, "lng"), (2021, "lat"))
    }
    assert min(distance.values()) >= 0.10, distance


def test_full_employment_data_takes_precedence(tmp_path: Path) -> None:
    years = [2016, 2017, 2016]
    codes = pa.array(["1", "2", "1"]).dictionary_encode()
    columns = {"id": [5, 6, 7], "year": years, "AGEP": [30.0, 40.0, 50.0]}
    columns |= dict.fromkeys(sources.EMPLOYMENT_COLUMNS[1:], codes)
    pq.write_table(pa.table(columns), tmp_path / sources.EMPLOYMENT_ANALYSIS)
    pq.write_table(pa.table({"id": [7, 6, 5], "employed": [1, 0, 0]}), tmp_path / sources.EMPLOYMENT_TARGET)
    inputs, labels = traffic.employment(2016, data=tmp_path)
    assert sorted(zip(inputs["features"][:, 0].tolist(), labels.tolist(), strict=True)) == [(30.0, 0), (50.0, 1)]
    assert inputs["features"][:, 1].tolist() == [1.0, 1.0]


def test_full_accident_data_takes_precedence_and_leaves_out_incomplete_rows(tmp_path: Path) -> None:
    numeric = {name: [1.5, 2.5, None, 3.5] for name in list(sources.ACCIDENT_COLUMNS.values())[:6]}
    table = pa.table(
        {
            **numeric,
            "day_of_week_acc": [0, 6, 3, 4],
            "Nautical_Twilight": ["Day", "Night", "Day", "Day"],
            "season_acc": ["spring"] * 4,
            "target": [0, 1, 1, 1],
            "year_acc": [2017, 2017, 2017, 2018],
            "Description": ["At I-15"] * 4,
        }
    )
    pyarrow.csv.write_csv(table, tmp_path / sources.ACCIDENTS)
    inputs, labels = traffic.accidents(2017, data=tmp_path)
    assert inputs["numeric"].dtype == np.float32
    assert sorted(inputs["numeric"][:, 0].tolist()) == [1.5, 2.5]
    assert sorted(inputs["categorical"].tolist()) == [["0", "Day", "spring"], ["6", "Night", "spring"]]
    assert sorted(labels.tolist()) == [0, 1]


def test_the_order_of_rows_depends_on_the_seed_alone() -> None:
    table = pa.table({"row": range(100)})
    order = sources.shuffled(table)["row"].to_pylist()
    assert order == sources.shuffled(table)["row"].to_pylist()
    assert order != sorted(order)
    assert sorted(order) == list(range(100))
