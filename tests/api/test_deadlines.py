"""The header `Request-Timeout`: heard at every door, and only ever a shorter wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.runtime.registry import Registry
from tests.support.doors import Doors, two_doors
from tests.support.onnx_models import affine, busy, write_version
from tests.support.requests import AFFINE, error_of, turns
from tests.support.versions import batcher_of
from tests.support.waiting import wait_until_async

V2 = ("/v2/models/busy/infer", turns(0))
V1 = ("/v1/models/busy:predict", {"instances": [[0]]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("deadlines")
    write_version(models, "affine", "1", affine())
    write_version(models, "busy", "1", busy(), "[batching]\nmax_batch_rows = 1\n")
    return models


class Occupied:
    """A gateway whose model `busy` runs, with one row in its queue."""

    def __init__(self, doors: Doors, client: httpx.AsyncClient) -> None:
        self._doors = doors
        self._client = client
        registry: Registry = doors.gateway.registry
        self.batcher = batcher_of(registry.get("busy", "1"))
        self._waiting: list[asyncio.Task[httpx.Response]] = []

    async def occupy(self) -> None:
        # The first run, of which nothing is known yet, is off the loop; it tells that others belong there as well.
        self._waiting.append(self.ask("fast", V2[0], turns(20_000)))
        await wait_until_async(lambda: self.batcher._running == 1)
        self._waiting.append(self.ask("fast", *V2))
        await wait_until_async(lambda: self.batcher.queued_rows == 1)

    def ask(self, door: str, path: str, document: Any, timeout: str | None = None) -> asyncio.Task[httpx.Response]:
        port = {"fast": self._doors.fast, "slow": self._doors.slow}[door]
        headers = {} if timeout is None else {"Request-Timeout": timeout}
        return asyncio.create_task(self._client.post(f"http://127.0.0.1:{port}{path}", json=document, headers=headers))

    async def end(self) -> None:
        for response in await asyncio.gather(*self._waiting):
            assert response.status_code == 200


@pytest.mark.parametrize("door", ["fast", "slow"])
@pytest.mark.parametrize(("path", "document"), [V2, V1])
def test_who_would_be_too_late_is_refused_at_once_and_counted(
    folder: Path, tmp_path: Path, door: str, path: str, document: Any
) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors, httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
            gateway = Occupied(doors, client)
            await gateway.occupy()
            gateway.batcher.queue.expect(0.5)
            refused = await gateway.ask(door, path, document, "1.5")
            assert error_of(refused, 503).startswith("would be answered after about 4 s and has 1.5 s")
            assert refused.headers["retry-after"] == "3"
            assert gateway.batcher.queued_rows == 1
            # It has longer, and more than the gateway lets anybody have.
            patient = gateway.ask(door, path, document, "999999")
            await wait_until_async(lambda: gateway.batcher.queued_rows == 2)
            assert gateway.batcher.queue.timers == {}
            assert (await patient).status_code == 200
            await gateway.end()
            metrics = (await client.get(f"http://127.0.0.1:{doors.ops}/metrics")).text
            assert 'gateway_errors_total{model="busy",reason="deadline_unreachable"} 1.0' in metrics
            assert "gateway_thread_budget" in metrics
            assert 'gateway_thread_seconds_total{model="busy",version="1"}' in metrics

    asyncio.run(scenario())


@pytest.mark.parametrize("door", ["fast", "slow"])
def test_whoever_was_admitted_in_vain_is_told_when_the_time_is_over(folder: Path, tmp_path: Path, door: str) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors, httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
            gateway = Occupied(doors, client)
            await gateway.occupy()
            late = await gateway.ask(door, *V2, "0.01")
            assert error_of(late, 503) == "waited 0.01 s in the queue"
            assert gateway.batcher.queued_rows == 1
            await gateway.end()

    asyncio.run(scenario())


@pytest.mark.parametrize("door", ["fast", "slow"])
def test_the_shorter_of_header_and_parameter_counts(folder: Path, tmp_path: Path, door: str) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors, httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
            gateway = Occupied(doors, client)
            await gateway.occupy()
            for header, parameter in (("0.02", 9_000_000), ("9", 20_000)):
                document = {**turns(0), "parameters": {"timeout": parameter, "priority": 1}}
                late = await gateway.ask(door, V2[0], document, header)
                assert error_of(late, 503) == "waited 0.02 s in the queue"
            await gateway.end()

    asyncio.run(scenario())


@pytest.mark.parametrize("door", ["fast", "slow"])
@pytest.mark.parametrize(
    "value", ["", "soon", "0", "0.0", "-1", "1e3", "inf", "nan", "1s", "1,5", "1.", ".5", "9" * 10]
)
def test_a_timeout_that_is_no_number_of_seconds_is_refused_by_name(
    folder: Path, tmp_path: Path, door: str, value: str
) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors, httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
            response = await Occupied(doors, client).ask(door, "/v2/models/affine/infer", AFFINE, value)
            assert error_of(response, 400).startswith("header Request-Timeout: expected seconds above 0")
            assert (await Occupied(doors, client).ask(door, "/v2/models/affine/infer", AFFINE, "2.5")).is_success

    asyncio.run(scenario())
