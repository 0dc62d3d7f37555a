"""A prediction over gRPC in a trace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from gateway.serving.request_traces import RequestTraces
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.tracing import Tracing
from tests.support.otlp import SeenSpan, collecting
from tests.support.planes import plane_over
from tests.support.rpc import floats, serving, stub, typed_request

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("model", "error", "children"), [("affine", None, {"queue", "run"}), ("nobody", "not_found", set())]
)
def test_a_caller_finds_its_request_below_the_span_that_its_metadata_names(
    model: str, error: str | None, children: set[str], models: Path, tmp_path: Path
) -> None:
    async def scenario() -> list[SeenSpan]:
        async with collecting() as collector:
            tracing = Tracing(collector.url, GatewayMetrics())
            traces = RequestTraces(tracing, rate=0.0, scheme="http", random=lambda: 0.5)
            with plane_over(models, tmp_path, traces=traces) as plane:
                async with serving(plane) as address, grpc.aio.insecure_channel(address) as channel:
                    for flags in ("01", "00"):
                        metadata = [("traceparent", f"00-{TRACE}-{SPAN}-{flags}")]
                        asked = stub(channel).ModelInfer(
                            typed_request(model, floats(1, 2, 3), "FP32"), metadata=metadata
                        )
                        code = grpc.StatusCode.OK if error is None else grpc.StatusCode.NOT_FOUND
                        assert await asked.code() is code
                await tracing.close()
            return collector.spans

    spans = asyncio.run(scenario())
    (server,) = [span for span in spans if span.kind == "server"]
    assert (server.name, server.trace_id, server.parent_id) == ("infer", TRACE, SPAN)
    assert (server.attributes["gateway.model"], server.attributes.get("error.type")) == (model, error)
    assert "http.route" not in server.attributes
    assert {span.name for span in spans if span.parent_id == server.span_id} == children
