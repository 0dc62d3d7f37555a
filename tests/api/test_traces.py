"""Who is traced, and what a trace says, whichever door the request came through."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.serving.call import Call
from gateway.telemetry import tracing as tracing_module
from tests.support.doors import Doors, two_doors
from tests.support.onnx_models import affine, busy, logarithm, lookup, write_version
from tests.support.otlp import Collector, SeenSpan, collecting
from tests.support.requests import AFFINE, inputs, tensor, turns
from tests.support.waiting import wait_until_async

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
INFER = "/v2/models/affine/infer"

pytestmark = pytest.mark.parametrize("door", ["fast", "slow"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("traced")
    write_version(models, "affine", "1", affine())
    write_version(models, "affine", "2", affine())
    write_version(models, "lookup", "1", lookup())
    write_version(models, "logarithm", "1", logarithm())
    write_version(models, "busy", "1", busy(), "[batching]\nmax_batch_rows = 1\nmax_queue_rows = 1\n")
    return models


@dataclass
class Traced:
    """A door, and the collector that its gateway tells."""

    doors: Doors
    client: httpx.AsyncClient
    collector: Collector

    async def post(self, path: str, document: Any = AFFINE, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """One request."""
        return await self.client.post(path, json=document, headers=headers)

    def outcomes(self) -> dict[str, int]:
        """Traces by what became of them, of those that there are."""
        samples = [sample for family in self.doors.gateway.metrics.collect() for sample in family.samples]
        return {s.labels["outcome"]: int(s.value) for s in samples if s.name == "gateway_traces_total" and s.value}


@asynccontextmanager
async def traced(folder: Path, tmp_path: Path, door: str, rate: float, **options: Any) -> AsyncIterator[Traced]:
    async with (
        collecting() as collector,
        two_doors(folder, tmp_path, otlp_endpoint=collector.url, trace_rate=rate, **options) as doors,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{getattr(doors, door)}", trust_env=False) as client,
    ):
        yield Traced(doors, client, collector)


@pytest.fixture
def spans_of(folder: Path, tmp_path: Path, door: str) -> Callable[..., list[SeenSpan]]:
    """What a gateway sent to the collector during a scenario, once it has sent everything."""

    def run(scenario: Callable[[Traced], Awaitable[object]], rate: float = 0.0) -> list[SeenSpan]:
        async def body() -> list[SeenSpan]:
            async with traced(folder, tmp_path, door, rate) as gateway:
                await scenario(gateway)
                assert gateway.doors.gateway.tracing is not None
                await gateway.doors.gateway.tracing.close()
                return gateway.collector.spans

        return asyncio.run(body())

    return run


def servers(spans: list[SeenSpan]) -> list[SeenSpan]:
    return sorted((span for span in spans if span.kind == "server"), key=lambda span: span.start)


def test_a_sampled_caller_finds_its_request_below_its_own_span(spans_of: Callable[..., list[SeenSpan]]) -> None:
    answers: list[httpx.Response] = []

    async def scenario(gateway: Traced) -> None:
        answers.append(await gateway.post(INFER, headers=SAMPLED))

    spans = spans_of(scenario)
    (server,) = servers(spans)
    assert (server.trace_id, server.parent_id) == (TRACE, SPAN)
    assert server.name == "POST /v2/models/{model}/infer"
    assert server.status == ("unset", "")
    parts = {part: server.attributes.pop(f"gateway.{part}_seconds") for part in ("decode", "queue", "run", "encode")}
    assert server.attributes == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model}/infer",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": INFER,
        "gateway.model": "affine",
        "gateway.version": "2",
        "gateway.variant": "default",
        "gateway.route_revision": 0,
        "gateway.prediction_id": answers[0].headers["prediction-id"],
        "gateway.rows": 1,
        "gateway.batch_rows": 1,
        "gateway.batch_left": "idle",
    }
    children = {span.name: span for span in spans if span.parent_id == server.span_id}
    assert children.keys() == {"queue", "run"}
    assert {span.trace_id for span in spans} == {TRACE}
    assert server.start < children["queue"].start <= children["queue"].end == children["run"].start
    assert children["run"].start < children["run"].end <= server.end
    assert (children["queue"].end - children["queue"].start) / 1e9 == pytest.approx(parts["queue"], abs=1e-6)
    assert (children["run"].end - children["run"].start) / 1e9 == pytest.approx(parts["run"], abs=1e-6)
    assert (children["queue"].start - server.start) / 1e9 == pytest.approx(parts["decode"], abs=1e-6)
    told = dict(part.strip().split(";dur=") for part in answers[0].headers["server-timing"].split(",") if "dur" in part)
    assert {part: float(text) / 1000 for part, text in told.items()} == pytest.approx(parts, abs=1e-6)


def test_a_version_that_was_asked_for_is_in_route_and_path(spans_of: Callable[..., list[SeenSpan]]) -> None:
    path = "/v2/models/affine/versions/1/infer"
    (server,) = servers(spans_of(lambda gateway: gateway.post(path, headers=SAMPLED)))
    assert server.name == "POST /v2/models/{model}/versions/{version}/infer"
    assert (server.attributes["url.path"], server.attributes["gateway.version"]) == (path, "1")
    assert server.attributes["gateway.variant"] == ""


@pytest.mark.parametrize(
    ("rate", "headers", "expected"),
    [
        (0.0, {}, 0),
        (0.0, UNSAMPLED, 0),
        (0.0, {"traceparent": "nonsense"}, 0),
        (1.0, {}, 1),
        # The caller has decided, and what we recorded would have no parent.
        (1.0, UNSAMPLED, 0),
        (1.0, SAMPLED, 1),
        # Counts as absent, says W3C Trace Context.
        (1.0, {"traceparent": "nonsense"}, 1),
    ],
)
def test_the_caller_decides_and_the_rate_where_it_says_nothing(
    rate: float, headers: dict[str, str], expected: int, spans_of: Callable[..., list[SeenSpan]]
) -> None:
    async def scenario(gateway: Traced) -> None:
        # Again on the same connection: what the door remembers of the first must not hide or keep a header.
        for more in (headers, headers, {}, headers):
            assert (await gateway.post(INFER, headers=more)).status_code == 200
        assert (await gateway.post("/v2/models/nobody/infer", headers=headers)).status_code == 404

    found = servers(spans_of(scenario, rate))
    # Four requests with these headers, and one without any.
    assert len(found) == 4 * expected + int(rate)
    roots = [span for span in found if span.parent_id != SPAN]
    assert len(found) - len(roots) == (4 if headers is SAMPLED else 0)
    # Each a trace of its own.
    assert len({span.trace_id for span in roots}) == len(roots)
    assert {span.parent_id for span in roots} <= {""}


@pytest.mark.parametrize(
    ("whom", "route", "version", "variant"),
    [
        ("affine", "/v1/models/{model}", "2", "default"),
        ("affine/versions/1", "/v1/models/{model}/versions/{version}", "1", ""),
        ("affine/labels/default", "/v1/models/{model}/labels/{label}", "2", "default"),
    ],
)
def test_predictions_by_the_v1_protocol_are_traced_under_its_routes(
    whom: str, route: str, version: str, variant: str, spans_of: Callable[..., list[SeenSpan]]
) -> None:
    path = f"/v1/models/{whom}:predict"
    spans = spans_of(lambda gateway: gateway.post(path, {"instances": [[1, 2, 3]]}, SAMPLED))
    (server,) = servers(spans)
    assert (server.trace_id, server.parent_id) == (TRACE, SPAN)
    assert server.name == f"POST {route}:predict"
    assert (server.attributes["http.route"], server.attributes["url.path"]) == (f"{route}:predict", path)
    assert (server.attributes["gateway.version"], server.attributes["gateway.variant"]) == (version, variant)
    assert {span.name for span in spans if span.parent_id == server.span_id} == {"queue", "run"}


def test_several_rows_in_a_shared_batch_are_told_apart(spans_of: Callable[..., list[SeenSpan]]) -> None:
    async def scenario(gateway: Traced) -> None:
        many = inputs(tensor("x", "FP32", [1.0] * 6, [2, 3]))
        await asyncio.gather(gateway.post(INFER), gateway.post(INFER, many, SAMPLED), gateway.post(INFER))

    (server,) = servers(spans_of(scenario))
    assert server.attributes["gateway.rows"] == 2
    assert 2 <= server.attributes["gateway.batch_rows"] <= 4


@pytest.mark.parametrize(
    ("path", "document", "status", "code", "ran"),
    [
        (INFER, {"inputs": 7}, 400, "invalid_request", False),
        (INFER, inputs(tensor("x", "FP32", [1.0, 2.0])), 400, "invalid_request", False),
        (INFER, inputs(tensor("x", "FP32", [1.0] * 3000, [1000, 3])), 413, "payload_too_large", False),
        ("/v2/models/nobody/infer", AFFINE, 404, "not_found", False),
        ("/v2/models/affine/versions/9/infer", AFFINE, 404, "not_found", False),
        ("/v2/models/lookup/infer", inputs(tensor("index", "INT64", [9], [1])), 400, "invalid_request", True),
        ("/v2/models/logarithm/infer", inputs(tensor("x", "FP32", [-1.0])), 500, "inference_failed", True),
        ("/v1/models/affine:predict", {"instances": 7}, 400, "invalid_request", False),
        ("/v1/models/nobody:predict", {"instances": [[1, 2, 3]]}, 404, "not_found", False),
        ("/v1/models/affine/labels/none:predict", {"instances": [[1, 2, 3]]}, 404, "not_found", False),
        ("/v1/models/lookup/labels/default:predict", {"instances": [9]}, 400, "invalid_request", True),
        ("/v1/models/logarithm:predict", {"instances": [[-1]]}, 500, "inference_failed", True),
    ],
)
def test_who_is_refused_or_fails_is_traced_with_the_reason(
    path: str, document: Any, status: int, code: str, ran: bool, spans_of: Callable[..., list[SeenSpan]]
) -> None:
    answers: list[httpx.Response] = []

    async def scenario(gateway: Traced) -> None:
        answers.extend([await gateway.post(path, document, headers) for headers in (SAMPLED, UNSAMPLED, {})])

    (server,) = servers(spans_of(scenario))
    assert [answer.status_code for answer in answers] == [status] * 3
    message = answers[0].json()["error"]
    attributes = server.attributes
    assert (server.trace_id, server.parent_id) == (TRACE, SPAN)
    assert attributes["url.path"] == path
    assert attributes["gateway.model"] == path.split("/")[3].removesuffix(":predict")
    assert attributes["http.response.status_code"] == status
    assert (attributes["error.type"], attributes["gateway.error"]) == (code, message)
    # OpenTelemetry's conventions: what the client did wrong is no error of the server's.
    assert server.status == (("error", message) if status >= 500 else ("unset", ""))
    assert ("gateway.version" in attributes) == ran
    # A body that is too large is refused before it is whole, which is when the span would begin.
    assert (server.end > server.start) == (status != 413)


def test_a_body_that_turns_out_too_large_is_traced(spans_of: Callable[..., list[SeenSpan]]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * 1000

    async def scenario(gateway: Traced) -> None:
        answer = await gateway.client.post(INFER, content=pieces(), headers=SAMPLED)
        assert answer.status_code == 413

    (server,) = servers(spans_of(scenario))
    assert (server.attributes["url.path"], server.attributes["error.type"]) == (INFER, "payload_too_large")


def test_a_full_queue_is_traced(spans_of: Callable[..., list[SeenSpan]]) -> None:
    async def scenario(gateway: Traced) -> None:
        await gateway.post("/v2/models/busy/infer", turns(5_000))
        asked = [gateway.post("/v2/models/busy/infer", turns(2_000), SAMPLED) for _ in range(6)]
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*asked))
        assert statuses[0] == 200
        assert statuses[-1] == 429

    found = servers(spans_of(scenario))
    assert len(found) == 6
    refused = [span for span in found if span.attributes["http.response.status_code"] == 429]
    assert {span.attributes["error.type"] for span in refused} == {"queue_full"}


@pytest.mark.parametrize(
    ("path", "document"), [(INFER, AFFINE), ("/v1/models/affine:predict", {"inputs": [[1, 2, 3]]})]
)
def test_a_request_leaves_no_cycles_behind_for_the_garbage_collector(
    path: str, document: Any, folder: Path, tmp_path: Path, door: str
) -> None:
    async def scenario() -> None:
        async with traced(folder, tmp_path, door, 1.0) as gateway:
            await gateway.post(path, document, SAMPLED)
            gc.collect()
            gc.disable()
            try:
                for headers in (SAMPLED, UNSAMPLED, {}):
                    assert (await gateway.post(path, document, headers)).status_code == 200
                # The endpoint's task is over a turn after the client has its answer.
                await wait_until_async(lambda: not [found for found in gc.get_objects() if isinstance(found, Call)])
            finally:
                gc.enable()

    asyncio.run(scenario())


def test_a_collector_that_is_down_disturbs_nobody(
    folder: Path, tmp_path: Path, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing_module, "EXPORT_SECONDS", 0.5)

    async def scenario() -> None:
        async with traced(folder, tmp_path, door, 1.0) as gateway:
            gateway.collector.status = 500
            answers = await asyncio.gather(*(gateway.post(INFER) for _ in range(20)))
            assert [answer.status_code for answer in answers] == [200] * 20
            assert gateway.doors.gateway.tracing is not None
            await gateway.doors.gateway.tracing.close()
            assert gateway.outcomes() == {"export_failed": 20}

    asyncio.run(scenario())
