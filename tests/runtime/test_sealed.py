from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from gateway.runtime.manifest import sha256_of
from gateway.runtime.sealed import CHUNK_BYTES, SealedFile


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_it_is_the_file_as_it_was(tmp_path: Path, size: int) -> None:
    source, content = tmp_path / "source", os.urandom(size)
    source.write_bytes(content)
    digest = sha256_of(source)
    sealed = SealedFile(source)
    source.write_bytes(b"another")
    assert (sealed.path.read_bytes(), bytes(sealed.buffer)) == (content, content)
    assert (sealed.sha256, sealed.size) == (digest, size)


def test_nobody_can_change_it_and_it_goes_when_nobody_needs_it(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    sealed = SealedFile(tmp_path / "source")
    path = sealed.path
    with pytest.raises(PermissionError), path.open("r+b", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(PermissionError):
        os.truncate(path, 0)
    assert path.read_bytes() == b"content"
    del sealed
    gc.collect()
    assert not path.exists()


def test_a_file_that_is_not_there_is_an_error_that_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_files()
    with pytest.raises(FileNotFoundError):
        SealedFile(tmp_path / "absent")
    assert open_files() == before
