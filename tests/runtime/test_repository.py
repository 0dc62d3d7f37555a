from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.runtime.manifest import ModelConfig
from gateway.runtime.repository import VersionFolder, scan, survey, usable
from gateway.types import ModelKey
from tests.support import onnx_models
from tests.support.manifests import write_published_version
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
    assert folder.verify() is None
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


def test_a_published_version_verifies(tmp_path: Path) -> None:
    write_published_version(tmp_path, "m", "1", CONTENT)
    (folder,) = scan(tmp_path)
    manifest = folder.verify()
    assert manifest is not None
    assert manifest.version == "1"


def test_a_model_that_is_not_the_published_one_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_published_version(tmp_path, "m", "1", CONTENT)
    (folder / "model.onnx").write_bytes(CONTENT + b"\n")
    with pytest.raises(StartupError, match=r"m/1/model\.onnx: sha256 is [0-9a-f]{64}, the manifest says"):
        scan(tmp_path)[0].verify()


def test_a_file_that_the_manifest_names_but_nobody_has_is_refused_by_name(tmp_path: Path) -> None:
    write_published_version(tmp_path, "m", "1", CONTENT, reference={"file": "reference.parquet", "sha256": "0" * 64})
    with pytest.raises(StartupError, match=r"m/1/reference\.parquet: named in the manifest, but not there"):
        scan(tmp_path)[0].verify()
