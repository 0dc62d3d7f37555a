"""A gateway over the bundled models, for what is shown on real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import GatewayProcess, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The bundled models; `employment` has the variants `stable`, which takes everything, and `canary`."""
    with running(ROOT / "models", tmp_path_factory.mktemp("bundled"), "--no-collector") as started:
        variants = [
            {"name": "stable", "version": "1", "weight": 100},
            {"name": "canary", "version": "2", "weight": 0},
        ]
        response = started.ops.put("/admin/routes/employment", json={"variants": variants}, headers={"If-Match": '"0"'})
        assert response.status_code == 200, response.text
        yield started
