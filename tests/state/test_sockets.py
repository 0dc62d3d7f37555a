from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import StartupError
from gateway.state.sockets import SOCKET_PATH_LIMIT, make_private, socket_path


def test_a_path_that_is_too_long_has_a_short_one_of_its_own() -> None:
    short = Path("/data/workers/0.sock")
    assert socket_path(short) == short
    long = [Path("/data") / ("d" * 100) / folder / "0.sock" for folder in "ab"]
    instead = [socket_path(path) for path in long]
    assert all(len(str(path)) <= SOCKET_PATH_LIMIT and path.name == "0.sock" for path in instead)
    assert len(set(instead)) == 2
    assert socket_path(long[0]) == instead[0]


def test_a_folder_is_made_for_the_user_alone_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private(folder)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o710)
    with pytest.raises(StartupError, match="others can reach into this folder"):
        make_private(folder)
