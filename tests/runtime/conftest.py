"""Real sessions, loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.runtime.session import OnnxSession
from tests.support import onnx_models


@pytest.fixture(scope="session")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxSession]:
    """A session by the name of its builder in `support/onnx_models.py`."""
    folder = tmp_path_factory.mktemp("sessions")
    loaded: dict[str, OnnxSession] = {}

    def session(name: str) -> OnnxSession:
        if name not in loaded:
            path: Path = folder / f"{name}.onnx"
            path.write_bytes(getattr(onnx_models, name)())
            loaded[name] = OnnxSession(path, "cpu", threads=1)
        return loaded[name]

    return session


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    """Two threads for runs."""
    with ThreadPoolExecutor(2) as pool:
        yield pool
