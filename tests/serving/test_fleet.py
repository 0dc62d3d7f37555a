"""Changes of several workers when one of them cannot follow; the workers are real, with repositories of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.children import child_environment
from gateway.errors import StartupError, Unavailable
from gateway.lifecycle import background
from gateway.listener import reserve
from gateway.serving.fleet import Fleet, StartRefused
from gateway.state import worker as worker_module
from gateway.state.worker import Worker
from tests.support import onnx_models
from tests.support.onnx_models import write_version
from tests.support.waiting import wait_until_async

Run = Callable[[Any], Any]
LOAD = "/v2/repository/models/affine/load"


@pytest.fixture
def repositories(tmp_path: Path) -> list[Path]:
    """One for each worker, alike."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        write_version(folder, "affine", "1", onnx_models.affine(1.0))
    return folders


@pytest.fixture
def workers(repositories: list[Path], tmp_path: Path, store_url: str) -> Iterator[list[Worker]]:
    with reserve("port", "127.0.0.1", 0) as public:
        yield [
            _worker(index, models, tmp_path, store_url, public.getsockname()[1])
            for index, models in enumerate(repositories)
        ]


def _worker(index: int, models: Path, folder: Path, store_url: str, port: int) -> Worker:
    sock = folder / f"{index}.sock"
    places = ["--socket", str(sock), "--supervisor", str(folder / "nobody.sock")]
    options = {"models": str(models), "data_dir": str(folder), "redis_url": store_url, "port": str(port)}
    command = [sys.executable, "-m", "gateway", "worker", str(index), *places]
    return Worker(index, sock, command, child_environment(options))


def with_fleet(run: Run, workers: Sequence[Worker], scenario: Callable[[Fleet], Awaitable[None]]) -> None:
    async def inside() -> None:
        fleet = Fleet(workers)
        try:
            await fleet.start()
            async with background(*fleet.keeping()):
                await scenario(fleet)
        finally:
            await fleet.stop(20.0)

    run(inside())


async def loaded(worker: Worker) -> list[str]:
    found: list[str] = (await worker.state())["loaded"]
    return found


def test_what_one_of_them_refuses_is_undone_in_the_others(
    run: Run, workers: list[Worker], repositories: list[Path]
) -> None:
    async def scenario(fleet: Fleet) -> None:
        # The first one can load it.
        write_version(repositories[0], "affine", "2", onnx_models.affine(2.0))
        write_version(repositories[1], "affine", "2", b"no model")
        answer = await fleet.change(LOAD, b"")
        assert answer.status_code == 400
        assert "nothing was loaded" in answer.json()["error"]
        assert [await loaded(worker) for worker in workers] == [["affine/1"]] * 2
        (repositories[1] / "affine" / "2" / "model.onnx").write_bytes(onnx_models.affine(2.0))
        assert (await fleet.change(LOAD, b"")).json()["versions"] == ["1", "2"]
        assert [await loaded(worker) for worker in workers] == [["affine/1", "affine/2"]] * 2

    with_fleet(run, workers, scenario)


def test_what_the_first_one_refuses_the_others_are_not_asked(run: Run, workers: list[Worker]) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert (await fleet.change("/v2/repository/models/nothing/load", b"")).status_code == 404
        assert (await fleet.change("/v2/logging", orjson.dumps({"log_error": False}))).status_code == 400
        assert [worker.restarts for worker in workers] == [0, 0]

    with_fleet(run, workers, scenario)


def test_one_that_dies_during_a_change_comes_back_with_it(
    run: Run, workers: list[Worker], repositories: list[Path]
) -> None:
    async def scenario(fleet: Fleet) -> None:
        for folder in repositories:
            write_version(folder, "affine", "2", onnx_models.affine(2.0))
        pid = workers[1].pid
        assert pid is not None
        # Stopped, it takes the request and never answers; then it is gone.
        os.kill(pid, signal.SIGSTOP)

        async def end_it() -> None:
            while "affine/2" not in await loaded(workers[0]):
                pass
            os.kill(pid, signal.SIGKILL)

        async with background(end_it()):
            assert (await fleet.change(LOAD, b"")).json()["versions"] == ["1", "2"]
        await wait_until_async(lambda: workers[1].is_serving and workers[1].pid != pid, 40.0)
        assert await loaded(workers[1]) == ["affine/1", "affine/2"]

    with_fleet(run, workers, scenario)


def test_one_that_hangs_is_killed_and_started_again(
    run: Run, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(_fleet: Fleet) -> None:
        monkeypatch.setattr(worker_module, "HANG_SECONDS", 0.5)
        pid = workers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await wait_until_async(lambda: workers[0].is_serving and workers[0].pid != pid, 40.0)

    monkeypatch.setattr(worker_module, "PING_SECONDS", 0.1)
    with_fleet(run, workers, scenario)
    assert workers[1].restarts == 0


def test_one_that_cannot_have_what_the_others_have_does_not_open(
    run: Run, workers: list[Worker], repositories: list[Path]
) -> None:
    async def scenario(fleet: Fleet) -> None:
        (repositories[1] / "affine" / "1" / "model.onnx").write_bytes(b"no model")
        pid = workers[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: workers[1].restarts >= 2, 60.0)
        assert [worker.index for worker in fleet.serving] == [0]

    with_fleet(run, workers, scenario)


def test_a_start_that_fails_is_told_by_its_exit_code_or_by_the_signal(
    run: Run, workers: list[Worker], repositories: list[Path]
) -> None:
    (repositories[0] / "affine" / "1" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(StartRefused) as caught:
        with_fleet(run, workers, _never)
    assert caught.value.code == 2

    killed = Worker(0, repositories[0], [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {})
    with pytest.raises(StartupError, match=r"worker 0 was ended by SIGKILL .* Fewer --workers"):
        with_fleet(run, [killed], _never)


def test_with_none_serving_everything_is_refused_for_now(run: Run, workers: list[Worker]) -> None:
    async def scenario() -> None:
        fleet = Fleet(workers)
        for asking in (
            fleet.change(LOAD, b""),
            fleet.statistics("/v2/models/stats"),
            fleet.ask_one("GET", "/", b"", {}),
        ):
            with pytest.raises(Unavailable, match="no worker takes requests"):
                await asking
        await fleet.stop(1.0)

    run(scenario())


async def _never(_fleet: Fleet) -> None:
    pytest.fail("it started")
