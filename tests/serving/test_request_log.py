"""The request log: what was sampled arrives once and whole, or is counted as lost; nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.errors import StoreUnavailable
from gateway.protocol import log_codec
from gateway.protocol.log_codec import LogEntry
from gateway.routing.route import bucket_of
from gateway.serving import request_log as request_log_module
from gateway.serving.request_log import RequestLog
from gateway.state import keys
from gateway.state.client import Store
from gateway.state.log_writer import LogWriter, Outcome
from gateway.telemetry.metrics import GatewayMetrics
from gateway.types import Array, InferenceResponse, ModelKey, string_array
from tests.support.planes import NOW, FakeWriter, Plane, plane_over
from tests.support.waiting import cancel, wait_until_async

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class ControlledWriter(FakeWriter):
    """Waits at a gate, and fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures = 0
        self.calls = 0

    async def append_predictions(self, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[Outcome]:
        """As the real one: it may take long, and it may fail."""
        self.calls += 1
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("gone")
        self.entries += entries
        return ["written"] * len(entries)


def decoded(writer: FakeWriter) -> list[LogEntry]:
    return [log_codec.decode(fields) for _, fields in writer.entries]


def row(*values: float) -> dict[str, Array]:
    return {"x": np.array([values], np.float32)}


async def predict_all(plane: Plane, count: int, model: str = "affine") -> list[InferenceResponse]:
    return list(await asyncio.gather(*(plane.predict(model, row(n, n, n)) for n in range(count))))


def ids_of(entries: list[LogEntry]) -> list[str]:
    return [request.prediction_id for entry in entries for request in entry.requests]


def test_every_sampled_row_is_written_with_its_answer_and_whose_it_was(
    plane_models: Path, tmp_path: Path, run: Run
) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        responses = await predict_all(plane, 20)
        await plane.log.flush()
        entries = decoded(writer)
        rows = {
            request.prediction_id: (entry.inputs["x"][index].tolist(), entry.outputs["y"][index].tolist())
            for entry in entries
            for index, request in enumerate(entry.requests)
        }
        assert rows == {response.prediction_id: ([n, n, n], [3 * n + 1] * 3) for n, response in enumerate(responses)}
        assert {(entry.key, entry.logged_at, entry.rate) for entry in entries} == {(ModelKey("affine", "2"), NOW, 1.0)}
        assert {(r.variant, r.revision, r.rows) for entry in entries for r in entry.requests} == {("default", 0, 1)}

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


@pytest.mark.parametrize(
    ("model", "inputs", "shapes"),
    [
        ("text", {"x": string_array(["a", "ü"], (2, 1))}, ((2, 1), (2, 1))),
        ("fixed", {"x": np.ones((2, 2), np.float32)}, ((1, 2, 2), (1, 2, 2))),
        ("classifier", {"x": np.ones((3, 1), np.float32)}, ((3, 1), (3,))),
    ],
)
def test_strings_several_rows_and_models_without_rows_are_written_too(
    model: str, inputs: dict[str, Array], shapes: Any, plane_models: Path, tmp_path: Path, run: Run
) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        await plane.predict(model, inputs)
        await plane.log.flush()
        (entry,) = decoded(writer)
        assert (entry.inputs["x"].shape, next(iter(entry.outputs.values())).shape) == shapes
        assert entry.inputs["x"].ravel().tolist() == inputs["x"].ravel().tolist()

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


def test_an_output_without_rows_is_left_out_and_the_rest_is_written(
    plane_models: Path, tmp_path: Path, run: Run
) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        await plane.predict("total", {"x": np.ones((3, 2), np.float32)})
        await plane.log.flush()
        (entry,) = decoded(writer)
        assert entry.inputs["x"].shape == (3, 2)
        assert entry.outputs == {}

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


def test_what_is_written_reaches_the_store(plane_models: Path, tmp_path: Path, store: Store, run: Run) -> None:
    writer = LogWriter(store, prediction_bytes=10**9, feedback_entries=10)

    async def scenario(plane: Plane) -> None:
        writing = asyncio.create_task(plane.log.run())
        responses = await predict_all(plane, 5)
        await wait_until_async(lambda: plane.counted("gateway_log_written_entries_total", model="affine"))
        await plane.log.flush()
        stored: Any = await store.xrange(keys.predictions("affine"))
        entries = [log_codec.decode(fields) for _, fields in stored]
        assert sorted(ids_of(entries)) == sorted(response.prediction_id for response in responses)
        await cancel(writing)

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_is_kept_and_the_counters_agree(rate: float, plane_models: Path, tmp_path: Path, run: Run) -> None:
    writer = FakeWriter()
    total = 4_000

    async def scenario(plane: Plane) -> None:
        for _ in range(4):
            await predict_all(plane, total // 4)
        await plane.log.flush()
        sampled = len(ids_of(decoded(writer)))
        # Five standard deviations of a binomial count.
        assert abs(sampled - rate * total) <= 5 * (rate * (1 - rate) * total) ** 0.5
        assert plane.counted("gateway_log_sampled_rows_total") == sampled
        assert plane.counted("gateway_log_written_entries_total") == len(writer.entries)
        assert all(entry.rate == rate for entry in decoded(writer))

    with plane_over(plane_models, tmp_path, writer=writer, rate=rate) as plane:
        run(scenario(plane))


class Recorder(RequestLog):
    """Remembers what it was offered, to offer it to other logs."""

    def __init__(self) -> None:
        super().__init__(FakeWriter(), GatewayMetrics(), rate=0.0, buffer_bytes=10**9)
        self.offers: list[tuple[Any, ...]] = []

    def offer(self, *offered: Any) -> None:
        """Remember."""
        self.offers.append(offered)


def test_whether_a_prediction_is_sampled_depends_on_its_id_alone(
    plane_models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()

    async def sampled(rate: float) -> set[str]:
        writer = FakeWriter()
        log = RequestLog(writer, GatewayMetrics(), rate=rate, buffer_bytes=10**9)
        for offered in recorder.offers:
            log.offer(*offered)
        await log.flush()
        return set(ids_of(decoded(writer)))

    async def scenario(plane: Plane) -> None:
        responses = await predict_all(plane, 500)
        few, again, more, everything = [await sampled(rate) for rate in (0.2, 0.2, 0.6, 1.0)]
        assert few == again
        assert few < more < everything == {response.prediction_id for response in responses}

    with plane_over(plane_models, tmp_path) as plane:
        monkeypatch.setattr(plane.plane, "_log", recorder)
        run(scenario(plane))


@pytest.mark.parametrize("model", ["affine", "text"])
def test_while_the_store_is_stuck_the_buffer_is_bounded_and_every_lost_entry_counted(
    model: str, plane_models: Path, tmp_path: Path, run: Run
) -> None:
    writer = ControlledWriter()
    limit = 20_000

    def inputs() -> dict[str, Array]:
        return {"x": string_array(["x" * 3_000], (1, 1))} if model == "text" else {"x": np.ones((100, 3), np.float32)}

    async def scenario(plane: Plane) -> None:
        writer.gate.clear()
        writing = asyncio.create_task(plane.log.run())
        # Predictions are answered although nothing can be written.
        for _ in range(50):
            await plane.predict(model, inputs())
        dropped = plane.counted("gateway_log_dropped_entries_total", model=model)
        assert dropped > 0
        assert plane.counted("gateway_log_written_entries_total") == 0
        writer.gate.set()
        await wait_until_async(lambda: len(writer.entries) + dropped == 50)
        assert sum(sum(map(len, fields.values())) for _, fields in writer.entries) <= limit
        # With room again, entries are taken again.
        await plane.predict(model, inputs())
        await wait_until_async(lambda: len(writer.entries) + dropped == 51)
        await cancel(writing)

    with plane_over(plane_models, tmp_path, writer=writer, buffer_bytes=limit) as plane:
        run(scenario(plane))


def test_one_entry_larger_than_the_buffer_is_dropped(plane_models: Path, tmp_path: Path, run: Run) -> None:
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        await plane.predict("text", {"x": string_array(["x" * 50_000], (1, 1))})
        await plane.log.flush()
        assert writer.entries == []
        assert plane.counted("gateway_log_dropped_entries_total", model="text") == 1

    with plane_over(plane_models, tmp_path, writer=writer, buffer_bytes=20_000) as plane:
        run(scenario(plane))


def test_what_could_not_be_written_is_written_later_in_order_and_once(
    plane_models: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log_module, "RETRY_SECONDS", 0.01)
    writer = ControlledWriter()
    writer.failures = 3

    async def scenario(plane: Plane) -> None:
        writing = asyncio.create_task(plane.log.run())
        responses = [await plane.predict("affine", row(n, n, n)) for n in range(200)]
        await wait_until_async(lambda: len(ids_of(decoded(writer))) >= 200)
        assert ids_of(decoded(writer)) == [response.prediction_id for response in responses]
        assert writer.failures == 0
        assert plane.counted("gateway_log_dropped_entries_total") == 0
        assert not writing.done()
        await cancel(writing)

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


def test_the_last_flush_beside_the_writing_task_neither_repeats_nor_loses_an_entry(
    plane_models: Path, tmp_path: Path, run: Run
) -> None:
    writer = ControlledWriter()

    async def scenario(plane: Plane) -> None:
        writer.gate.clear()
        writing = asyncio.create_task(plane.log.run())
        responses = [await plane.predict("affine", row(n, n, n)) for n in range(100)]
        await wait_until_async(lambda: writer.calls)
        last = asyncio.create_task(plane.log.flush())
        await asyncio.sleep(0.01)
        writer.gate.set()
        await last
        await wait_until_async(lambda: len(ids_of(decoded(writer))) >= 100)
        assert sorted(ids_of(decoded(writer))) == sorted(response.prediction_id for response in responses)
        assert not writing.done()
        await cancel(writing)

    with plane_over(plane_models, tmp_path, writer=writer) as plane:
        run(scenario(plane))


def test_what_is_abandoned_at_the_end_is_counted(plane_models: Path, tmp_path: Path, run: Run) -> None:
    async def scenario(plane: Plane) -> None:
        for n in range(3):
            await plane.predict("affine", row(n, n, n))
        assert plane.log.abandon() == 3
        assert plane.counted("gateway_log_dropped_entries_total", model="affine") == 3
        assert plane.log.abandon() == 0

    with plane_over(plane_models, tmp_path) as plane:
        run(scenario(plane))


def test_what_the_store_refuses_for_good_is_dropped_and_holds_up_nothing_else(models: Path, tmp_path: Path) -> None:
    class Refusing(FakeWriter):
        async def append_predictions(self, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[Outcome]:
            outcomes: list[Outcome] = ["refused" if name == "affine" else "written" for name, _ in entries]
            self.entries += [entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome == "written"]
            return outcomes

    writer = Refusing()

    async def scenario() -> tuple[float, float]:
        with plane_over(models, tmp_path, writer=writer) as plane:
            await predict_all(plane, 3)
            await plane.predict("total", {"x": np.ones((1, 2), np.float32)})
            await plane.log.flush()
            dropped = plane.counted("gateway_log_dropped_entries_total", model="affine")
            return dropped, plane.counted("gateway_log_written_entries_total", model="total")

    dropped, written = asyncio.run(scenario())
    assert dropped >= 1
    assert written == 1
    assert [name for name, _ in writer.entries] == ["total"]


def test_what_the_store_did_not_take_is_written_once_later_and_the_rest_not_again(models: Path, tmp_path: Path) -> None:
    class FailingOnce(FakeWriter):
        calls = 0

        async def append_predictions(self, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> list[Outcome]:
            self.calls += 1
            outcomes: list[Outcome] = [
                "failed" if self.calls == 1 and index else "written" for index in range(len(entries))
            ]
            self.entries += [entry for entry, outcome in zip(entries, outcomes, strict=True) if outcome == "written"]
            return outcomes

    writer = FailingOnce()

    async def scenario() -> None:
        with plane_over(models, tmp_path, writer=writer) as plane:
            for number in range(3):
                await plane.predict("affine", row(number, number, number))
            with pytest.raises(StoreUnavailable):
                await plane.log.flush()
            await plane.log.flush()

    asyncio.run(scenario())
    firsts = [float(entry.inputs["x"][0, 0]) for entry in decoded(writer)]
    assert firsts == [0.0, 1.0, 2.0]


def test_a_sticky_request_leaves_its_bucket_and_nothing_of_who_asked(
    plane_models: Path, tmp_path: Path, store: Store, run: Run
) -> None:
    document = {
        "name": "affine",
        "revision": 3,
        "variants": [{"name": "old", "version": "1", "weight": 50}, {"name": "new", "version": "2", "weight": 50}],
        "sticky": {"header": "x-user"},
        "holdout": 1,
        "match": [{"header": "x-beta", "equals": "secret-beta", "variant": "new"}],
    }
    writer = FakeWriter()

    async def scenario(plane: Plane) -> None:
        await store.set(keys.route("affine"), orjson.dumps(document))
        await plane.routes.refresh()
        for headers in ({"x-user": "secret-ann"}, {"x-user": "secret-ann", "x-beta": "secret-beta"}, {}):
            await plane.predict("affine", row(1, 2, 3), headers=headers)
        await plane.log.flush()

    with plane_over(plane_models, tmp_path, store=store, writer=writer) as plane:
        run(scenario(plane))
    logged = [request for entry in decoded(writer) for request in entry.requests]
    assert [one.rule for one in logged] == [None, 0, None]
    assert [one.bucket for one in logged] == [bucket_of("affine", "secret-ann")] * 2 + [None]
    assert [one.holdout_bucket for one in logged] == [bucket_of("holdout", "secret-ann")] * 2 + [None]
    assert logged[0].units == "header x-user, salt affine"
    assert not any(b"secret" in value for _, fields in writer.entries for value in fields.values())
