"""What becomes of requests that are too many, wait too long, or whose client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from tests.support import triton
from tests.support.requests import error_of, turns
from tests.support.running import GatewayProcess, metric, running
from tests.support.sockets import connection, read_answers, request_bytes
from tests.support.waiting import wait_until


@contextmanager
def occupied(gateway: GatewayProcess, count: int) -> Iterator[None]:
    """The model `busy` runs inside for that many turns; it answers at the end."""
    with connection(gateway) as sock:
        sock.sendall(request_bytes("busy", turns(0)))
        read_answers(sock, 1)
        sock.sendall(request_bytes("busy", turns(count)))
        # Once a later request on another connection is answered, the loop has read this one.
        assert gateway.public.get("/v2/health/live").status_code == 200
        yield
        assert read_answers(sock, 1)[0][0] == 200


class TestPressure:
    """The model `busy` runs one row at a time and queues four."""

    def test_a_full_queue_is_429_with_retry_after_and_the_admitted_are_answered(self, gateway: GatewayProcess) -> None:
        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=gateway.public_url, timeout=30.0, trust_env=False) as client:
                return await asyncio.gather(*(client.post("/v2/models/busy/infer", json=turns(1)) for _ in range(10)))

        with occupied(gateway, 50_000):
            responses = asyncio.run(ask_all())
        refused = [response for response in responses if response.status_code != 200]
        assert len(responses) - len(refused) == 4
        for response in refused:
            assert "takes at most 4" in error_of(response, 429)
            assert int(response.headers["retry-after"]) >= 1

    def test_a_request_that_does_not_fit_the_queue_whole_is_refused_whole(self, gateway: GatewayProcess) -> None:
        rows = metric(gateway, "gateway_rows_total", model="busy")
        with occupied(gateway, 50_000), ThreadPoolExecutor(1) as pool:
            three = pool.submit(gateway.predict, "busy", turns(1, rows=3))
            wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") == 3)
            error_of(gateway.predict("busy", turns(1, rows=2)), 429)
            assert three.result().status_code == 200
        assert metric(gateway, "gateway_rows_total", model="busy") == rows + 1 + 1 + 3

    def test_who_waited_too_long_gets_503_with_retry_after(self, models: Path, tmp_path: Path) -> None:
        with running(models, tmp_path, "--no-collector", "--request-timeout", "0.1") as impatient:
            assert impatient.predict("busy", turns(5_000)).status_code == 200
            with occupied(impatient, 30_000):
                response = impatient.predict("busy", turns(1))
            assert "waited 0.1 s in the queue" in error_of(response, 503)
            assert int(response.headers["retry-after"]) >= 1
            assert metric(impatient, "gateway_errors_total", model="busy", reason="deadline_exceeded") == 1

    def test_a_timeout_of_a_requests_own_ends_its_wait_while_the_model_is_still_busy(
        self, gateway: GatewayProcess
    ) -> None:
        failed = metric(gateway, "gateway_errors_total", model="busy", reason="deadline_exceeded")
        with occupied(gateway, 50_000):
            runs = metric(gateway, "gateway_batches_total", model="busy")
            response = gateway.predict("busy", {**turns(1), "parameters": {"timeout": 2_000}})
            assert metric(gateway, "gateway_batches_total", model="busy") == runs
            assert metric(gateway, "gateway_queue_rows", model="busy") == 0
        assert error_of(response, 503) == "waited 0.002 s in the queue"
        assert response.headers["retry-after"] == "1"
        assert metric(gateway, "gateway_errors_total", model="busy", reason="deadline_exceeded") == failed + 1

    def test_a_request_of_high_priority_overtakes_those_that_came_before(self, gateway: GatewayProcess) -> None:
        order: list[str] = []

        def is_queued(rows: int) -> bool:
            return metric(gateway, "gateway_queue_rows", model="busy") == rows

        def ask(name: str, priority: int) -> None:
            with triton.connected(gateway.public_url) as client:
                # Long enough for each client to come back before the next.
                turn = triton.tensor(np.array([[2_000]]), "INT64", "turns")
                client.infer("busy", [turn], outputs=triton.outputs("y"), priority=priority)
            order.append(name)

        with occupied(gateway, 50_000), ThreadPoolExecutor(3) as pool:
            for count, (name, priority) in enumerate((("first", 0), ("second", 2), ("third", 1)), 1):
                pool.submit(ask, name, priority)
                wait_until(partial(is_queued, count))
        assert order == ["third", "second", "first"]

    def test_a_client_that_leaves_while_queued_is_counted_and_its_rows_are_not_run(
        self, gateway: GatewayProcess
    ) -> None:
        left = metric(gateway, "gateway_cancelled_total", model="busy")
        rows = metric(gateway, "gateway_rows_total", model="busy")
        with occupied(gateway, 50_000), ThreadPoolExecutor(1) as pool:
            with connection(gateway) as leaver:
                leaver.sendall(request_bytes("busy", turns(1, rows=3)))
                wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") == 3)
                neighbour = pool.submit(gateway.predict, "busy", turns(1))
                wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") == 4)
            wait_until(lambda: metric(gateway, "gateway_cancelled_total", model="busy") == left + 1)
            assert neighbour.result().status_code == 200
        assert metric(gateway, "gateway_rows_total", model="busy") == rows + 1 + 1 + 1
        assert metric(gateway, "gateway_queue_rows", model="busy") == 0

    def test_a_v1_client_that_leaves_while_queued_is_counted_and_its_rows_are_not_run(
        self, gateway: GatewayProcess
    ) -> None:
        left = metric(gateway, "gateway_cancelled_total", model="busy")
        rows = metric(gateway, "gateway_rows_total", model="busy")
        body = b'{"instances": [[1], [1], [1]]}'
        head = b"POST /v1/models/busy:predict HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
        with occupied(gateway, 50_000):
            with connection(gateway) as leaver:
                leaver.sendall(head + body)
                wait_until(lambda: metric(gateway, "gateway_queue_rows", model="busy") == 3)
            wait_until(lambda: metric(gateway, "gateway_cancelled_total", model="busy") == left + 1)
            assert metric(gateway, "gateway_queue_rows", model="busy") == 0
        assert metric(gateway, "gateway_rows_total", model="busy") == rows + 1 + 1
