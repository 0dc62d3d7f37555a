"""Two real data sets as judges of the judge: one must not alarm, the other must."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gateway.collector.catalog import Watched, read_version
from gateway.stats.judge import judge
from gateway.stats.sketch import WindowSketch
from gateway.stats.verdict import Status, Verdict
from gateway.types import Array

MODELS = Path(__file__).parents[2] / "models"


def reference_of(model: str, columns: set[str]) -> WindowSketch:
    known = read_version(MODELS / model / "1")
    assert isinstance(known, Watched)
    reference = known.reference
    return WindowSketch({n: f for n, f in reference.fields.items() if n in columns}, reference.rows)


def year_of(model: str, year: int) -> dict[str, Array]:
    table = pq.read_table(MODELS / model / "data" / f"{year}.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def windows(model: str, years: range, windows_a_year: int) -> list[tuple[int, Verdict]]:
    """The verdicts on every year's rows, in equal parts."""
    reference = reference_of(model, set(year_of(model, years[0])))
    verdicts: list[tuple[int, Verdict]] = []
    for year in years:
        columns = year_of(model, year)
        parts = np.array_split(np.arange(len(next(iter(columns.values())))), windows_a_year)
        for part in parts:
            window = reference.empty()
            window.update({name: values[part] for name, values in columns.items()})
            previous = verdicts[-1][1] if verdicts else None
            verdict = judge(model, "1", reference, window, opened=0.0, closed=1.0, previous=previous)
            verdicts.append((year, verdict))
    return verdicts


@pytest.mark.parametrize("windows_a_year", [1, 4])
def test_three_years_of_employment_are_silent(windows_a_year: int) -> None:
    for year, verdict in windows("employment", range(2016, 2019), windows_a_year):
        assert verdict.status is Status.OK, (year, verdict.reasons)
        age = next(feature for feature in verdict.features if feature.name == "AGEP")
        assert age.ks is not None
        assert age.ks < 0.05


def test_accidents_raise_an_alarm_by_2019() -> None:
    verdicts = windows("accidents", range(2017, 2022), 2)
    assert all(verdict.status is not Status.OK for _, verdict in verdicts)
    assert min(year for year, verdict in verdicts if verdict.status is Status.ALARM) <= 2019
