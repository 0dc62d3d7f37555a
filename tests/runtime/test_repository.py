from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.runtime.manifest import ModelConfig
from gateway.runtime.repository import VersionFolder, model_bytes, scan, selected, stamps, survey, usable
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.onnx_models import write_version

CONTENT = onnx_models.classifier()


def names(folders: list[VersionFolder]) -> list[str]:
    return [str(folder.key) for folder in folders]


def test_versions_come_by_name_and_as_numbers(tmp_path: Path) -> None:
    for name, version in [("b", "10"), ("b", "9"), ("a", "2"), ("b", "1")]:
        write_version(tmp_path, name, version, b"")
    assert names(scan(tmp_path)) == ["a/2", "b/1", "b/9", "b/10"]


def test_a_folder_with_nothing_but_model_onnx_is_a_version(tmp_path: Path) -> None:
    write_version(tmp_path, "m", "1", CONTENT)
    (folder,) = scan(tmp_path)
    assert folder.config == ModelConfig()


def test_what_is_no_version_is_passed_over(tmp_path: Path) -> None:
    write_version(tmp_path, "m", "1", CONTENT)
    (tmp_path / "m" / "data").mkdir()
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "train.py").write_text("")
    (tmp_path / "README.md").write_text("")
    # A version that is being published is staged in a hidden folder beside it.
    (tmp_path / "m" / ".3-x7" / "new").mkdir(parents=True)
    (tmp_path / "m" / ".3-x7" / "new" / "model.onnx").write_bytes(CONTENT)
    assert names(scan(tmp_path)) == ["m/1"]


@pytest.mark.parametrize("version", ["0", "01", "v1", "1.0", "-1", "1a", "1234567890", "²"])
def test_a_version_is_a_whole_number_from_1_on(tmp_path: Path, version: str) -> None:
    write_version(tmp_path, "m", version, CONTENT)
    with pytest.raises(StartupError, match="a version is a whole number from 1 on"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["a b", "-a", ".hidden", "ä", "a" * 64, "a%2Fb", "a:b"])
def test_a_model_name_is_one_that_a_path_can_hold(tmp_path: Path, name: str) -> None:
    write_version(tmp_path, name, "1", CONTENT)
    with pytest.raises(StartupError, match="a model name is letters, digits"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "0", "a" * 63])
def test_names_that_are_fine(tmp_path: Path, name: str) -> None:
    write_version(tmp_path, name, "999999999", CONTENT)
    assert names(scan(tmp_path)) == [f"{name}/999999999"]


def test_a_repository_that_is_not_there_or_empty_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--models"):
        scan(tmp_path / "absent")
    with pytest.raises(StartupError, match=r"holds no <name>/<version>/model\.onnx"):
        scan(tmp_path)


def test_a_bad_model_toml_names_file_and_key(tmp_path: Path) -> None:
    write_version(tmp_path, "m", "1", CONTENT, toml="[batching]\nmax_rows = 1\n")
    with pytest.raises(StartupError, match=r"m/model\.toml: batching\.max_rows"):
        scan(tmp_path)


def test_a_survey_tells_what_is_wrong_beside_what_is_right(tmp_path: Path) -> None:
    write_version(tmp_path, "m", "1", CONTENT)
    write_version(tmp_path, "m", "v2", CONTENT)
    write_version(tmp_path, "bad", "1", CONTENT, toml="[batching]\nmax_rows = 1\n")
    found = survey(tmp_path)
    assert found.keys() == {ModelKey("m", "1"), ModelKey("m", "v2"), ModelKey("bad", "1")}
    assert usable(found[ModelKey("m", "1")]).folder == tmp_path / "m" / "1"
    with pytest.raises(StartupError, match="m/v2: a version is a whole number"):
        usable(found[ModelKey("m", "v2")])
    with pytest.raises(StartupError, match=r"bad/model\.toml: batching\.max_rows"):
        usable(found[ModelKey("bad", "1")])
    assert survey(tmp_path / "absent") == {}


def choice(models: Path, toml: str, named: dict[str, set[str]] | None = None) -> list[str]:
    for version in ["1", "2", "9", "10"]:
        write_version(models, "m", version, CONTENT, toml)
    return names(selected(scan(models), named or {}))


@pytest.mark.parametrize(
    ("toml", "named", "expected"),
    [
        ("", {}, ["m/1", "m/2", "m/9", "m/10"]),
        ("latest = 1", {}, ["m/10"]),
        ("latest = 2", {}, ["m/9", "m/10"]),
        ("latest = 9", {}, ["m/1", "m/2", "m/9", "m/10"]),
        ("specific = [2, 3, 10]", {}, ["m/2", "m/10"]),
        ("specific = [3]", {}, []),
        # What a route names is loaded whatever the policy; of what is not there nothing is known here.
        ("latest = 1", {"m": {"2", "77"}, "other": {"1"}}, ["m/2", "m/10"]),
    ],
)
def test_model_toml_chooses_and_so_do_routes(
    tmp_path: Path, toml: str, named: dict[str, set[str]], expected: list[str]
) -> None:
    assert choice(tmp_path, f"[versions]\n{toml}\n", named) == expected


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("latest = 0", "versions.latest: "),
        ("specific = []", "versions.specific: "),
        ('specific = ["a"]', "versions.specific.0: "),
        ("latest = 1\nspecific = [1]", "versions: Value error, latest and specific exclude each other"),
        ("newest = 1", "versions.newest: "),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(tmp_path: Path, toml: str, problem: str) -> None:
    with pytest.raises(StartupError, match=f"m/model.toml: {problem}"):
        choice(tmp_path, f"[versions]\n{toml}\n")


def test_a_stamp_changes_with_the_files_and_only_with_them(tmp_path: Path) -> None:
    folder = write_version(tmp_path, "m", "1", CONTENT, toml="[versions]\nlatest = 1\n")
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(b"12")
    (folder / "reference.parquet").write_bytes(b"1234")
    (tmp_path / "m" / "4").mkdir()
    (tmp_path / "README.md").write_text("")
    (folder / ".#model.onnx").symlink_to("nowhere")
    before = stamps(tmp_path)
    assert before.keys() == {ModelKey("m", "1"), ModelKey("m", "model.toml")}
    assert scan(tmp_path)[0].stamp() == before[ModelKey("m", "1")]
    write_version(tmp_path, "lost+found", "1", CONTENT)
    assert stamps(tmp_path) == before
    (folder / "weights" / "w.bin").write_bytes(b"34")
    after = stamps(tmp_path)
    assert after[ModelKey("m", "1")] != before[ModelKey("m", "1")]
    assert after[ModelKey("m", "model.toml")] == before[ModelKey("m", "model.toml")]
    assert len(CONTENT) + 2 <= model_bytes(after[ModelKey("m", "1")]) < len(CONTENT) + 2 + 2**14
    with pytest.raises(FileNotFoundError):
        stamps(tmp_path / "absent")
