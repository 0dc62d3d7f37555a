"""The rule of this file: over an engine a caller gets what it would get from a session in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway.engine_process import EngineProcess
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    PayloadTooLarge,
    StartupError,
    TooManyRequests,
    Unavailable,
)
from gateway.protocol.parameters import Schedule
from gateway.runtime.engine import messages
from gateway.runtime.engine.server import Engine
from gateway.runtime.registry import ModelVersion
from gateway.runtime.session import OnnxSession
from gateway.types import Array, ModelKey, string_array
from tests.support import onnx_models, strange_models
from tests.support.batching import Caller, assert_each_got_its_own, matrix, run_alone
from tests.support.engines import (
    ARENA_BYTES,
    EngineWorker,
    WorkerProcess,
    answer_of,
    engine_here,
    engine_process,
    engine_worker,
    sent_messages,
    session_of,
    turns_of,
)
from tests.support.manifests import write_published_version
from tests.support.onnx_models import write_version
from tests.support.running import is_alive
from tests.support.waiting import cancel, wait_until, wait_until_async

Sessions = Callable[[str], OnnxSession]
LONG = 20_000
"""Turns of the model `busy` that outlast everything that a test does meanwhile."""
NAMES = ("affine_of_any_width", "row_sum", "pair", "lookup", "total", "positions", "fixed_rows", "classifier", "busy")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for each property."""
    models = tmp_path_factory.mktemp("engine-models")
    for name in NAMES:
        write_version(models, name, "1", getattr(onnx_models, name)())
    write_version(models, "affine", "1", onnx_models.affine())
    write_version(models, "affine", "2", onnx_models.affine(3.0))
    for datatype in onnx_models.ONNX_TYPES:
        write_version(models, f"echo-{datatype}", "1", onnx_models.identity(datatype))
    return models


def values_of(datatype: str) -> Array:
    """Rows with the ends of a datatype's range."""
    if datatype == "BYTES":
        return string_array(["", "ascii", "übel 🙂", "\0"], (2, 2))
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    dtype = np.dtype({"FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower()))
    if dtype.kind == "f":
        return np.array([[np.finfo(dtype).max, -np.inf], [np.nan, np.finfo(dtype).tiny]], dtype)
    return np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max], [0, 1]], dtype)


class TestAnswers:
    def test_every_datatype_comes_back_bit_for_bit(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with engine_here(repository, tmp_path / "e"), engine_worker(tmp_path / "e", repository) as worker:
                for datatype in onnx_models.ONNX_TYPES:
                    version = await worker.load(f"echo-{datatype}")
                    given = values_of(datatype)
                    (output,) = await answer_of(version, {"x": given})
                    assert output.dtype == given.dtype
                    if datatype == "BYTES":
                        assert output.tolist() == given.tolist()
                    else:
                        assert output.tobytes() == given.tobytes()

        asyncio.run(scenario())

    @pytest.mark.parametrize("name", ["affine_of_any_width", "row_sum"])
    def test_any_mix_of_rows_and_shapes_from_two_workers(
        self, name: str, repository: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        random = np.random.default_rng(3)
        # Whole numbers: what a sum is rounded to depends on where in memory its terms lie.
        shapes = [(int(random.integers(1, 6)), int(random.integers(1, 6))) for _ in range(60)]
        callers = [Caller({"x": random.integers(-99, 99, shape).astype(np.float32)}) for shape in shapes]

        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as workers:
                versions = [await worker.load(name) for worker in workers]
                for number, caller in enumerate(callers):
                    versions[number % 2].batcher.submit(caller)
                    if number % 7 == 0:
                        # Some meet the ones before them in the queue.
                        await asyncio.sleep(0)
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                rows = sum(caller.rows for caller in callers)
                batches = [worker.device_batches(name) for worker in workers]
                # Each run on the device is counted once, whoever had rows in it.
                assert sum(total for _, total in batches) == rows
                assert sum(count for count, _ in batches) < len(callers)

        asyncio.run(scenario())
        assert_each_got_its_own(callers, run_alone(sessions(name), callers))

    def test_outputs_whose_size_nobody_could_know_come_whole_and_then_have_room(
        self, repository: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        wide = [Caller(matrix(3, 1_000, seed)) for seed in range(4)]

        async def scenario() -> None:
            async with engine_here(repository, tmp_path / "e"), engine_worker(tmp_path / "e", repository) as worker:
                version = await worker.load("affine_of_any_width")
                session = session_of(version)
                assert session.room(3) < 3 * 1_000 * 4
                for caller in wide:
                    version.batcher.submit(caller)
                    await wait_until_async(lambda: caller.is_answered)  # noqa: B023 -- waited for here
                assert session.room(3) >= 3 * 1_000 * 4

        asyncio.run(scenario())
        assert_each_got_its_own(wide, run_alone(sessions("affine_of_any_width"), wide))

    def test_rows_on_another_axis_and_padded_sequences_come_back_to_their_callers(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        write_version(models, "running_total", "1", strange_models.running_total())
        write_version(models, "encoder", "1", strange_models.encoder(), strange_models.PADDED_ENCODER)
        steps = [np.full((3, rows, 2), rows, np.float32) for rows in (1, 2, 3, 1)]
        tokens = [np.arange(1, 1 + length).reshape(1, length) for length in (3, 4, 9, 1, 3)]
        totals = [Caller({"x": each}, each.shape[1]) for each in steps]
        sequences = [Caller({"tokens": each}) for each in tokens]

        async def scenario() -> None:
            async with two_workers(models, tmp_path / "e") as workers:
                for name, callers in (("running_total", totals), ("encoder", sequences)):
                    versions = [await worker.load(name) for worker in workers]
                    for number, caller in enumerate(callers):
                        versions[number % 2].batcher.submit(caller)
                    await wait_until_async(lambda: all(one.is_answered for one in callers))  # noqa: B023 -- waited for

        asyncio.run(scenario())
        for caller, given in zip(sequences, tokens, strict=True):
            assert caller.answer[1].tolist() == (10 * given).tolist()
        for caller, step in zip(totals, steps, strict=True):
            np.testing.assert_array_equal(caller.answer[0], step.cumsum(axis=0))

    @pytest.mark.parametrize("name", ["total", "positions", "fixed_rows"])
    def test_models_without_rows_answer_each_caller_alone(
        self, name: str, repository: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        callers = [Caller({"x": np.array([[n, n], [0, n]], np.float32)}) for n in range(1, 6)]

        async def scenario() -> None:
            async with engine_here(repository, tmp_path / "e"), engine_worker(tmp_path / "e", repository) as worker:
                version = await worker.load(name)
                for caller in callers:
                    version.batcher.submit(caller)
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))

        asyncio.run(scenario())
        assert_each_got_its_own(callers, run_alone(sessions(name), callers))

    def test_of_callers_that_share_a_message_only_the_one_with_bad_values_gets_the_error(
        self, repository: Path, tmp_path: Path
    ) -> None:
        indices = [0, 1, 99, 2, 3]
        callers = [[Caller({"index": np.array([index])}) for index in indices] for _ in range(2)]

        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as workers:
                for worker, mine in zip(workers, callers, strict=True):
                    version = await worker.load("lookup")
                    for caller in mine:
                        version.batcher.submit(caller)
                await wait_until_async(lambda: all(caller.is_answered for mine in callers for caller in mine))

        asyncio.run(scenario())
        for mine in callers:
            for index, caller in zip(indices, mine, strict=True):
                if index == 99:
                    assert isinstance(caller.error, InvalidRequest | InferenceFailed)
                else:
                    assert caller.answer[0].tolist() == [[2 * index, 2 * index + 1]]


@asynccontextmanager
async def two_workers(repository: Path, path: Path) -> AsyncIterator[tuple[EngineWorker, EngineWorker]]:
    """On one engine, all in this loop."""
    async with (
        engine_here(repository, path),
        engine_worker(path, repository) as one,
        engine_worker(path, repository) as other,
    ):
        yield one, other


async def load_busy(worker: EngineWorker) -> ModelVersion:
    """The model `busy`, known to be slow: its rows of zeros were fast, so the first slow run is still on the loop."""
    version = await worker.load("busy")
    await answer_of(version, turns_of(1_000))
    return version


async def keep_busy(version: ModelVersion, turns: int = LONG) -> asyncio.Task[list[Array]]:
    """A long run that has begun."""
    before = sent_messages(version)
    running = asyncio.create_task(answer_of(version, turns_of(turns)))
    await wait_until_async(lambda: sent_messages(version) == before + 1)
    return running


class TestMerging:
    def test_rows_of_worker_processes_share_a_run_of_the_device(self, repository: Path, tmp_path: Path) -> None:
        with engine_process(repository, tmp_path) as engine, ExitStack() as stack:
            workers = [WorkerProcess(engine.socket, repository) for _ in range(3)]
            for worker in workers:
                stack.callback(worker.stop)
            assert engine.pid is not None
            before = cpu_seconds(engine.pid)
            workers[0].ask(LONG)
            wait_until(lambda: cpu_seconds(engine.pid or 0) > before + 0.02)
            # While the engine is busy with the first, a row each; and then one run for both.
            workers[1].ask(10)
            workers[2].ask(20)
            assert workers[0].read() == [str(LONG), "1", "1.0"]
            answers = [worker.read() for worker in workers[1:]]
            assert [answer[0] for answer in answers] == ["10", "20"]
            assert sorted(answer[1:] for answer in answers) == [["0", "0.0"], ["1", "2.0"]]

    def test_messages_that_wait_for_the_same_run_go_in_one(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as workers:
                versions = [await load_busy(worker) for worker in workers]
                before = [worker.device_batches("busy") for worker in workers]
                first = await keep_busy(versions[0])
                rest = [asyncio.create_task(answer_of(version, turns_of(5))) for version in versions]
                await wait_until_async(lambda: [sent_messages(version) for version in versions] == [2, 1])
                assert not first.done()
                assert [(await task)[0].tolist() for task in (first, *rest)] == [[[LONG]], [[5]], [[5]]]
                after = [worker.device_batches("busy") for worker in workers]
                assert sum(runs for runs, _ in after) - sum(runs for runs, _ in before) == 2
                assert sum(rows for _, rows in after) - sum(rows for _, rows in before) == 3

        asyncio.run(scenario())

    def test_what_arrives_while_messages_are_on_their_way_goes_in_one_message(
        self, repository: Path, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await load_busy(worker)
                before = worker.device_batches("busy")
                first = await keep_busy(version)
                second = await keep_busy(version, 3)
                # The next is sent when a run ends, with all that came until then.
                callers = [Caller(turns_of(5)) for _ in range(20)]
                for caller in callers:
                    version.batcher.submit(caller)
                await first
                await second
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                after = worker.device_batches("busy")
                assert (after[0] - before[0], after[1] - before[1]) == (3, 22)

        asyncio.run(scenario())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestBounds:
    def test_a_full_arena_holds_messages_back_and_answers_all_of_them(
        self, repository: Path, sessions: Sessions, tmp_path: Path
    ) -> None:
        # Each takes more than a third of the arena, so that two are on their way at most.
        columns = ARENA_BYTES // 4 // 5 * 2
        callers = [Caller(matrix(1, columns + number, number)) for number in range(8)]

        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                busy = await load_busy(worker)
                version = await worker.load("affine_of_any_width")
                running = await keep_busy(busy)
                for caller in callers:
                    version.batcher.submit(caller)
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                assert not running.done()
                await running

        asyncio.run(scenario())
        assert_each_got_its_own(callers, run_alone(sessions("affine_of_any_width"), callers))

    def test_a_message_that_is_held_back_is_dropped_when_its_caller_leaves(
        self, repository: Path, tmp_path: Path
    ) -> None:
        rows = ARENA_BYTES // 8 // 2

        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, other):
                version = await load_busy(worker)
                # Until this is over the engine runs nothing else of the model.
                running = await keep_busy(await load_busy(other))
                callers = [Caller({"turns": np.full((rows, 1), 5)}) for _ in range(2)]
                link = worker.client.link
                version.batcher.submit(callers[0])
                await wait_until_async(lambda: sent_messages(version) == 1)
                version.batcher.submit(callers[1])
                await wait_until_async(lambda: link._held)
                version.batcher.discard(callers[1])
                assert not link._held
                assert sent_messages(version) == 1
                await running
                await version.batcher.close()
                assert callers[0].answer[0].shape == (rows, 1)
                assert not callers[1].answers

        asyncio.run(scenario())

    def test_rows_that_can_never_fit_are_refused_with_the_remedy_and_hurt_no_neighbour(
        self, repository: Path, tmp_path: Path
    ) -> None:
        columns = ARENA_BYTES // 4

        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await worker.load("affine_of_any_width")
                caller = Caller(matrix(1, columns + 16))
                version.batcher.submit(caller)
                await wait_until_async(lambda: caller.is_answered)
                assert isinstance(caller.error, PayloadTooLarge)
                assert "send fewer rows in a request, or raise engine_arena_bytes" in caller.error.message
                # Together these are too large as well; one by one they fit, to the last byte.
                neighbours = [Caller(matrix(1, columns, seed)) for seed in range(3)]
                for neighbour in neighbours:
                    version.batcher.submit(neighbour)
                await wait_until_async(lambda: all(one.is_answered for one in neighbours))
                for neighbour in neighbours:
                    np.testing.assert_array_equal(neighbour.answer[0], 2 * neighbour.inputs["x"] + 1)

        asyncio.run(scenario())

    def test_a_message_that_is_too_long_to_be_sent_fails_and_the_next_goes_on(
        self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await worker.load("affine")
                caller = Caller(matrix(1, 3))
                with monkeypatch.context() as patch:
                    patch.setattr(messages, "MAX_MESSAGE_BYTES", 10)
                    version.batcher.submit(caller)
                    await wait_until_async(lambda: caller.is_answered)
                assert isinstance(caller.error, InferenceFailed)
                assert (await answer_of(version, matrix(1, 3)))[0].shape == (1, 3)

        asyncio.run(scenario())

    def test_a_full_queue_refuses_before_any_work(self, repository: Path, tmp_path: Path) -> None:
        write_version(tmp_path, "busy", "1", onnx_models.busy(), "[batching]\nmax_queue_rows = 4\nmax_batch_rows = 1\n")

        async def scenario() -> None:
            async with two_workers(tmp_path, tmp_path / "e") as (worker, _):
                version = await load_busy(worker)
                running = await keep_busy(version)
                await keep_busy(version, 1)
                callers = [Caller(turns_of(1)) for _ in range(4)]
                for caller in callers:
                    version.batcher.submit(caller)
                with pytest.raises(TooManyRequests, match="takes at most 4"):
                    version.batcher.submit(Caller(turns_of(1)))
                assert version.batcher.queued_rows == 4
                await running
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                assert [caller.answer[0].tolist() for caller in callers] == [[[1]]] * 4

        asyncio.run(scenario())

    def test_a_timeout_ends_the_wait_here_and_in_the_engine(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await load_busy(worker)
                running = await keep_busy(version)
                callers = [Caller(turns_of(1)), Caller(turns_of(1))]
                for caller in callers:
                    caller.schedule = Schedule(timeout=0.05)
                    version.batcher.submit(caller)
                    # The first goes to the engine and waits there, the second waits here.
                    await asyncio.sleep(0)
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                assert not running.done()
                assert all(isinstance(caller.error, DeadlineExceeded) for caller in callers)
                await running

        asyncio.run(scenario())

    def test_a_message_of_which_all_callers_left_is_not_run(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await load_busy(worker)
                running = await keep_busy(version)
                callers = [Caller(turns_of(5)) for _ in range(3)]
                for caller in callers:
                    version.batcher.submit(caller)
                await wait_until_async(lambda: sent_messages(version) == 2)
                version.batcher.discard(callers[0])
                version.batcher.discard(callers[1])
                await answer_of(await worker.load("affine"), matrix(1, 3))
                assert sent_messages(version) == 2
                version.batcher.discard(callers[2])
                await wait_until_async(lambda: sent_messages(version) == 1)
                assert not running.done()
                before = worker.device_batches("busy")
                await running
                await version.batcher.close()
                assert worker.device_batches("busy")[0] == before[0] + 1
                assert not any(caller.answers for caller in callers)

        asyncio.run(scenario())


class TestLoading:
    def test_workers_share_a_session_and_the_last_one_takes_it_along(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            path = tmp_path / "e"
            async with engine_here(repository, path) as engine, engine_worker(path, repository) as one:
                async with engine_worker(path, repository) as other:
                    versions = await asyncio.gather(one.load("affine"), other.load("affine"), other.load("affine", "2"))
                    resident = engine._residents[ModelKey("affine", "1")]
                    assert resident.users == 2
                    session = session_in(engine, "1")
                    await versions[1].close()
                    await wait_until_async(lambda: resident.users == 1)
                    assert (await answer_of(versions[0], matrix(1, 3)))[0].shape == (1, 3)
                # A worker that is gone needs nothing any more.
                await wait_until_async(lambda: set(engine._residents) == {ModelKey("affine", "1")})
                await versions[0].close()
                await wait_until_async(lambda: not engine._residents and not hasattr(session, "_session"))
                again = await one.load("affine")
                assert (await answer_of(again, matrix(1, 3)))[0].shape == (1, 3)

        asyncio.run(scenario())

    def test_what_is_wrong_with_a_file_is_said_in_the_worker(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        write_version(models, "broken", "1", b"no model")
        folder = write_published_version(models, "forged", "1", onnx_models.classifier())
        (folder / "model.onnx").write_bytes(onnx_models.affine())

        async def scenario() -> None:
            path = tmp_path / "e"
            async with engine_here(models, path) as engine, engine_worker(path, models) as worker:
                for name, reason in (("broken", "ONNX Runtime cannot load it"), ("forged", "sha256 is")):
                    with pytest.raises(StartupError, match=reason):
                        await worker.load(name)
                assert not engine._residents
                # Mended, it loads.
                (models / "broken" / "1" / "model.onnx").write_bytes(onnx_models.affine())
                await worker.load("broken")

        asyncio.run(scenario())

    def test_a_version_that_arrives_with_the_end_of_the_connection_is_loaded_again(
        self, repository: Path, tmp_path: Path
    ) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                known = await worker.load("affine")
                loading = asyncio.create_task(worker.load("row_sum"))
                link = worker.client.link
                await wait_until_async(lambda: link._loads)
                (number,) = link._loads
                # What the engine would say, and its end in the same turn of the loop.
                made_up = session_of(known).loaded._replace(number=number, handle=7, digest="made up")
                link._take(made_up, None)
                link.close()
                version = await loading
                assert version.batcher.problem or worker.client.link is not link
                await wait_until_async(lambda: known.batcher.problem is None)
                # The digest that was made up is not the one of the files.
                await wait_until_async(lambda: "changed" in str(version.batcher.problem))
                assert (await answer_of(known, matrix(1, 3)))[0].shape == (1, 3)

        asyncio.run(scenario())

    def test_requests_in_flight_are_answered_before_a_version_goes(self, repository: Path, tmp_path: Path) -> None:
        async def scenario() -> None:
            async with two_workers(repository, tmp_path / "e") as (worker, _):
                version = await load_busy(worker)
                running = await keep_busy(version, 2_000)
                closing = asyncio.create_task(version.close())
                await asyncio.sleep(0)
                with pytest.raises(Unavailable, match="being unloaded"):
                    version.batcher.submit(Caller(turns_of(1)))
                await closing
                assert (await running)[0].tolist() == [[2_000]]

        asyncio.run(scenario())


def session_in(engine: Engine, version: str) -> OnnxSession:
    session = engine._residents[ModelKey("affine", version)].version.session
    assert isinstance(session, OnnxSession)
    return session


class TestKilled:
    def test_an_engine_that_is_killed_costs_what_is_in_flight_and_comes_back_with_its_versions(
        self, repository: Path, tmp_path: Path
    ) -> None:
        async def scenario(engine: EngineProcess) -> None:
            keeping = asyncio.create_task(engine.keep_running())
            async with engine_worker(engine.socket, repository) as worker:
                version = await load_busy(worker)
                affine = await worker.load("affine")
                callers = [Caller(turns_of(LONG)) for _ in range(4)]
                for caller in callers:
                    version.batcher.submit(caller)
                    await asyncio.sleep(0)
                await wait_until_async(lambda: sent_messages(version) == 2)
                pid = engine.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await wait_until_async(lambda: all(caller.is_answered for caller in callers))
                for caller in callers:
                    assert isinstance(caller.error, Unavailable)
                    assert caller.error.retry_after
                    assert "being started again" in caller.error.message
                for waiting in (version, affine):
                    with pytest.raises(Unavailable, match="cannot run: the engine process has ended"):
                        waiting.require_ready()
                with pytest.raises(Unavailable):
                    affine.batcher.submit(Caller(matrix(1, 3)))
                assert version.batcher.queued_rows == 0
                # A load waits for the engine that is being started.
                text = await worker.load("echo-BYTES")
                for waiting in (version, affine, text):
                    waiting.require_ready()
                assert engine.pid != pid
                assert (await answer_of(version, turns_of(7)))[0].tolist() == [[7]]
                assert (await answer_of(affine, matrix(2, 3)))[0].shape == (2, 3)
            await cancel(keeping)

        with engine_process(repository, tmp_path) as engine:
            asyncio.run(scenario(engine))

    def test_a_version_that_is_gone_when_the_engine_comes_back_says_so_and_the_others_run(self, tmp_path: Path) -> None:
        models = tmp_path / "models"
        for name in ("kept", "removed", "changed"):
            write_version(models, name, "1", onnx_models.affine())

        async def scenario(engine: EngineProcess) -> None:
            keeping = asyncio.create_task(engine.keep_running())
            async with engine_worker(engine.socket, models) as worker:
                kept, removed, changed = [await worker.load(name) for name in ("kept", "removed", "changed")]
                (models / "removed" / "1" / "model.onnx").unlink()
                (models / "changed" / "1" / "model.onnx").write_bytes(onnx_models.classifier())
                os.kill(engine.pid or 0, signal.SIGKILL)
                await wait_until_async(lambda: kept.batcher.problem)
                await wait_until_async(lambda: kept.batcher.problem is None)
                await wait_until_async(lambda: "changed" in str(changed.batcher.problem))
                await wait_until_async(lambda: "holds no removed/1 any more" in str(removed.batcher.problem))
                assert (await answer_of(kept, matrix(1, 3)))[0].shape == (1, 3)
                await removed.close()
            await cancel(keeping)

        with engine_process(models, tmp_path / "data") as engine:
            asyncio.run(scenario(engine))

    def test_a_worker_that_is_killed_leaves_neither_queue_nor_memory(self, repository: Path, tmp_path: Path) -> None:
        with engine_process(repository, tmp_path) as engine:
            assert engine.pid is not None
            pid = engine.pid
            first, second = (WorkerProcess(engine.socket, repository) for _ in range(2))
            try:
                assert shared_memories(pid) == 2
                second.ask(LONG)
                before = cpu_seconds(pid)
                wait_until(lambda: cpu_seconds(pid) > before)
                first.ask(50 * LONG)
                second.stop()
                first.stop()
                # Not even the run that is on keeps the memory for long, and what was queued is not run.
                wait_until(lambda: shared_memories(pid) == 0)
                third = WorkerProcess(engine.socket, repository)
                third.ask(3)
                assert third.read()[0] == "3"
                third.stop()
            finally:
                first.stop()
                second.stop()

    def test_an_engine_does_not_outlive_whoever_started_it(self, repository: Path, tmp_path: Path) -> None:
        with engine_process(repository, tmp_path) as engine:
            pid = engine.pid
            assert pid is not None
        wait_until(lambda: not is_alive(pid))


def shared_memories(pid: int) -> int:
    """Arenas that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:gateway")
