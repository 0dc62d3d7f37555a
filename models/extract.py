"""Cut the committed extracts under `models/<name>/data/` from the full data: `python -m models.extract`.

Needed only to change the selection; `python models/fetch_data.py` has to run first. Of each year the first rows in the
order of `sources.py` are taken. A year that trains a model has the training rows first and held-out rows after them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.packaging import write_columns
from gateway.types import Array
from models import sources
from models.fetch_data import DATA

EMPLOYMENT_ROWS = {2015: 24_000, 2016: 8_000, 2017: 8_000, 2018: 8_000}
ACCIDENT_ROWS = {2016: 8_000, 2017: 4_000, 2018: 4_000, 2019: 4_000, 2020: 4_000, 2021: 4_000}


def main() -> None:
    cut("employment", sources.employment, EMPLOYMENT_ROWS)
    cut("accidents", sources.accidents, ACCIDENT_ROWS)


def cut(model: str, read: Callable[[int, Path], dict[str, Array]], rows: dict[int, int]) -> None:
    folder = Path(__file__).resolve().parent / model / "data"
    for year, count in rows.items():
        path = folder / f"{year}.parquet"
        write_columns(path, {name: array[:count] for name, array in read(year, DATA).items()})
        print(f"{model} {year}: {count:,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
