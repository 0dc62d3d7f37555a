"""`Server-Timing` on every prediction, unless it is turned off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.doors import two_doors
from tests.support.onnx_models import affine, write_version
from tests.support.requests import AFFINE

INFER = "/v2/models/affine/infer"
REQUESTS: dict[str, tuple[str, Any]] = {
    "common": (INFER, AFFINE),
    "with an id": (INFER, {**AFFINE, "id": "one"}),
    "in binary": (INFER, {**AFFINE, "parameters": {"binary_data_output": True}}),
    "V1": ("/v1/models/affine:predict", {"instances": [[1.0, 2.0, 3.0]]}),
}
PARTS = ["decode", "queue", "batch", "run", "encode"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_version(models, "affine", "1", affine())
    return models


def timings(folder: Path, tmp_path: Path, what: str, **options: Any) -> list[str | None]:
    """Of both doors."""
    path, document = REQUESTS[what]

    async def ask() -> list[str | None]:
        found = []
        async with two_doors(folder, tmp_path, **options) as doors, httpx.AsyncClient(trust_env=False) as client:
            for port in (doors.fast, doors.slow):
                answer = await client.post(f"http://127.0.0.1:{port}{path}", json=document)
                assert answer.status_code == 200, answer.text
                found.append(answer.headers.get("server-timing"))
            failed = await client.post(f"http://127.0.0.1:{doors.fast}{path}", json={})
            assert "server-timing" not in failed.headers
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("what", REQUESTS)
def test_every_part_is_told_in_order(folder: Path, tmp_path: Path, what: str) -> None:
    for text in timings(folder, tmp_path, what):
        assert text is not None
        assert [part.split(";")[0] for part in text.split(", ") if ";" in part] == PARTS
        durations = {
            part.split(";dur=")[0]: float(part.split(";dur=")[1]) for part in text.split(", ") if "dur=" in part
        }
        assert all(milliseconds >= 0 for milliseconds in durations.values())
        assert durations["run"] > 0
        assert 'batch;desc="1 row, ' in text


@pytest.mark.parametrize("what", ["common", "V1"])
def test_it_can_be_turned_off(folder: Path, tmp_path: Path, what: str) -> None:
    assert timings(folder, tmp_path, what, server_timing=False) == [None, None]
