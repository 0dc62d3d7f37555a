"""The fast door must be told from Starlette's by its speed alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import orjson
import pytest

from gateway.api.fastpath import MAX_IN_FLIGHT
from tests.support.doors import Doors, HttpAnswer, converse, exchange, two_doors
from tests.support.onnx_models import affine, busy, fixed_rows, lookup, positions, write_version
from tests.support.waiting import wait_until_async

LIMIT = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("doors")
    for version in ("1", "2"):
        write_version(models, "affine", version, affine())
    write_version(models, "lookup", "1", lookup())
    write_version(models, "positions", "1", positions())
    write_version(models, "fixed", "1", fixed_rows())
    write_version(models, "busy", "1", busy(), "[batching]\nmax_batch_rows = 1\n")
    return models


def rows(*values: float) -> bytes:
    data = list(values) * 3
    return orjson.dumps({"inputs": [{"name": "x", "shape": [len(values), 3], "datatype": "FP32", "data": data}]})


def turns(count: int) -> bytes:
    """Keeps the model `busy` for some time."""
    return orjson.dumps({"inputs": [{"name": "turns", "shape": [1, 1], "datatype": "INT64", "data": [count]}]})


def post(path: str, body: bytes, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: here", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(path: str, body: bytes, size: int) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


MANY = 60_000
"""Requests whose answers no socket buffer holds."""
INFER = "/v2/models/affine/infer"
GET = b"GET /v2 HTTP/1.1\r\nHost: here\r\n\r\n"
REQUESTS = [
    post(INFER, rows(1.0)),
    post(INFER, rows(1.0, 2.0, 3.0)),
    post("/v2/models/affine/versions/1/infer", rows(4.0), "X-User-Id: you"),
    post("/v2/models/affine/versions/9/infer", rows(4.0)),
    post("/v2/models/nobody/infer", rows(1.0)),
    post("/v2/models/af%66ine/infer", rows(1.0)),
    post(INFER + "?verbose=1", rows(1.0)),
    post("/v2/models/fixed/infer", rows(1.0, 2.0)),
    post(INFER, b'{"inputs": [}'),
    post(INFER, b""),
    post(INFER, rows(1.0).replace(b"FP32", b"FP64")),
    post(INFER, rows(1.0).replace(b"]}]}", b']}],"outputs":[{"name":"y"}],"id":"an \\"id\\""}')),
    post(INFER, rows(1.0), "EXPECT: 100-Continue"),
    post(INFER, rows(1.0), "Content-Encoding: gzip"),
    post(INFER, rows(1.0), "Request-Timeout: 30"),
    post(INFER, rows(1.0), "Request-Timeout: 0.5", "request-timeout: never"),
    post(INFER, rows(1.0), "Request-Timeout: soon"),
    post(INFER, rows(1.0), "Request-Timeout: 0"),
    post(INFER, rows(1.0), "Inference-Header-Content-Length: 7"),
    post(INFER, b"[" * 3000),
    post(INFER, b" " * (LIMIT + 1)),
    chunked(INFER, rows(1.0, 2.0), 11),
    chunked(INFER, b" " * (LIMIT + 100), 1000),
    chunked(INFER, b" " * (3 * LIMIT), 1000),
    post(INFER, rows(1.0).replace(b"[1,3]", b"5")),
    post(INFER, rows(1.0).replace(b"[1,3]", b"null")),
    post(INFER, rows(1.0).replace(b"[1.0,1.0,1.0]", b'"abc"')),
    post(INFER, rows(1.0).replace(b"[1.0,1.0,1.0]", b'{"a":1,"b":2,"c":3}')),
    post("/v2/feedback", b'{"prediction_id": "x", "label": 1}'),
    GET,
    b"GET /v2/models/affine/infer HTTP/1.1\r\nHost: here\r\n\r\n",
    b"HEAD /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n",
    b"GET /nothing HTTP/1.1\r\nHost: here\r\n\r\n",
]
LAST = [
    post(INFER, rows(1.0), "Connection: close"),
    post(INFER, rows(1.0), version="1.0"),
    post(INFER, b"{", "Connection: close"),
    b"GET /v2 HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n",
]


def is_head(request: bytes) -> bool:
    return request.startswith(b"HEAD")


def alike(answer: HttpAnswer) -> object:
    """An answer without what differs from one to the next."""
    kept = {name: value for name, value in answer.headers if name not in {"date", "prediction-id", "server-timing"}}
    is_prediction = answer.status == 200 and b"outputs" in answer.body
    assert ("prediction-id" in dict(answer.headers)) == is_prediction
    assert ("server-timing" in dict(answer.headers)) == is_prediction
    return answer.status, kept, answer.body


def cut(stream: bytes, rng: random.Random, most: int) -> list[bytes]:
    places = sorted(rng.sample(range(1, len(stream)), min(rng.randrange(most), len(stream) - 1)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


async def compare(doors: Doors, requests: list[bytes], rng: random.Random, most_cuts: int) -> list[HttpAnswer]:
    stream = b"".join(requests)
    heads = [is_head(request) for request in requests]
    fast = await exchange(doors.fast, cut(stream, rng, most_cuts), heads)
    slow = await exchange(doors.slow, cut(stream, rng, most_cuts), heads)
    assert [alike(answer) for answer in fast] == [alike(answer) for answer in slow]
    return fast


@pytest.mark.parametrize("request_", REQUESTS + LAST, ids=range(len(REQUESTS + LAST)))
def test_each_request_is_answered_alike_by_both_doors(folder: Path, tmp_path: Path, request_: bytes) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            answers = await compare(doors, [request_], random.Random(1), 1)
            assert len(answers) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_pipelined_requests_in_random_pieces_are_answered_alike_and_in_order(
    folder: Path, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            for _ in range(8):
                requests = rng.choices(REQUESTS, k=rng.randrange(1, 12)) + rng.choices(LAST, k=rng.randrange(2))
                answers = await compare(doors, requests, rng, rng.choice((1, 4, 40)))
                assert len(answers) == len(requests)

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(6))
def test_a_head_that_was_seen_before_means_the_same_again(folder: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    many = [post(INFER, rows(*(float(rng.randrange(9)) for _ in range(rng.randrange(1, 4))))) for _ in range(20)]

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            for _ in range(4):
                requests = rng.choices(REQUESTS + many, k=40)
                fast = await converse(doors.fast, requests)
                slow = await converse(doors.slow, requests)
                assert [alike(answer) for answer in fast] == [alike(answer) for answer in slow]

    asyncio.run(scenario())


def test_half_a_head_is_never_taken_for_one(folder: Path, tmp_path: Path) -> None:
    half = f"POST {INFER} HTTP/1.1\r\nHost: here\r\nX-Half: a".encode()
    # The body is the first piece but for its first three bytes, as if the head had ended there.
    misleading = [half, b"\r\nContent-Length: %d\r\n\r\n" % len(half[3:]) + half[3:]]
    whole = [half, b"\r\nContent-Length: %d\r\n\r\n" % len(rows(1.0)) + rows(1.0)]

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            for pieces, status in ((misleading, 400), (whole, 200), (misleading, 400), (whole, 200)):
                (answer,) = await exchange(doors.fast, pieces, [False])
                assert answer.status == status

    asyncio.run(scenario())


def test_a_malformed_request_line_is_uvicorns_own_400(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            (answer,) = await compare(doors, [b"NOT HTTP AT ALL\r\n\r\n"], random.Random(1), 1)
            assert answer.status == 400
            assert answer.body == b"Invalid HTTP request received."

    asyncio.run(scenario())


def test_what_came_before_a_malformed_request_is_answered_first(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            stream = post(INFER, rows(1.0)) + post(INFER, rows(2.0)) + b"NOT HTTP AT ALL\r\n\r\n"
            answers = await exchange(doors.fast, [stream], [False] * 3)
            assert [answer.status for answer in answers] == [200, 200, 400]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("requests", "statuses"),
    [
        ([GET, GET, b"NOT HTTP\r\n\r\n"], [200, 200, 400]),
        ([post(INFER, rows(1.0)), GET, GET, b"NOT HTTP\r\n\r\n"], [200, 200, 200, 400]),
        ([post(INFER, rows(1.0)), chunked("/v2/feedback", b"{}", 1)[:-5] + b"zz\r\n"], [200, 400]),
        ([post(INFER, rows(1.0)), b"CONNECT a:99999 HTTP/1.1\r\n\r\n"], [200, 400]),
    ],
)
def test_every_whole_request_before_garbage_is_answered_in_its_turn(
    folder: Path, tmp_path: Path, requests: list[bytes], statuses: list[int]
) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            answers = await exchange(doors.fast, [b"".join(requests)], [False] * (len(statuses) + 1))
            assert [answer.status for answer in answers] == statuses

    asyncio.run(scenario())


def test_stopping_waits_for_a_request_that_is_half_sent(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> list[bytes]:
        async with two_doors(folder, tmp_path) as doors:
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
            whole = post(INFER, rows(1.0))
            writer.write(whole[:-20])
            connections = doors.fast_listener.server_state.connections
            await wait_until_async(lambda: any(getattr(c, "_size", 0) for c in connections))
            for connection in list(connections):
                connection.shutdown()
            writer.write(whole[-20:])
            received = await reader.read()
            writer.close()
            return received.split(b"\r\n")

    lines = asyncio.run(scenario())
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"connection: close" in lines


def test_more_pipelined_requests_than_may_be_in_flight_are_all_answered_in_order(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            count = 5 * MAX_IN_FLIGHT
            stream = b"".join(post(INFER, rows(float(number))) for number in range(count))
            answers = await exchange(doors.fast, [stream], [False] * count, seconds=30.0)
            firsts = [orjson.loads(answer.body)["outputs"][0]["data"][0] for answer in answers]
            assert firsts == [2.0 * number + 1.0 for number in range(count)]

    asyncio.run(scenario())


def test_a_client_that_leaves_takes_its_queued_rows_along(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            body = turns(30_000)
            staying = asyncio.create_task(
                exchange(doors.fast, [post("/v2/models/busy/infer", body)], [False], seconds=60.0)
            )
            batcher = doors.gateway.registry.get("busy", "1").batcher
            metrics = doors.gateway.metrics.version(doors.gateway.registry.get("busy", "1").key)
            _, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
            writer.write(post("/v2/models/busy/infer", body) * 3)
            await wait_until_async(lambda: batcher.queued_rows >= 2)
            writer.close()
            await wait_until_async(lambda: metrics.cancelled == 3)
            # At most the one who stays is still waiting.
            assert batcher.queued_rows <= 1
            assert [answer.status for answer in await staying] == [200]
            assert metrics.rows == 1

    asyncio.run(scenario())


def test_a_client_that_does_not_read_is_not_read_either(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast, limit=1024)
            request = post(INFER, rows(*(float(n) for n in range(60))))
            sent = 0
            # Its own writes stall: the gateway has stopped reading, and the sockets' buffers are full.
            try:
                async with asyncio.timeout(1.5):
                    while sent < MANY:
                        writer.write(request)
                        await writer.drain()
                        sent += 1
            except TimeoutError:
                pass
            assert sent < MANY
            connection = next(iter(doors.fast_listener.server_state.connections))
            assert len(connection.slots) <= 2 * MAX_IN_FLIGHT + 200  # type: ignore[union-attr]
            # Others are served meanwhile, and it gets its answers once it reads.
            assert [a.status for a in await exchange(doors.fast, [post(INFER, rows(1.0))], [False])] == [200]
            for _ in range(100):
                head = await reader.readuntil(b"\r\n\r\n")
                # The first ones fit the model's queue.
                assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 429"))
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()

    asyncio.run(scenario())


def test_stopping_answers_what_is_in_flight_and_says_that_the_connection_closes(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> list[HttpAnswer]:
        async with two_doors(folder, tmp_path) as doors:
            asking = asyncio.create_task(
                exchange(doors.fast, [post("/v2/models/busy/infer", turns(20_000)) * 2], [False] * 2, 60.0)
            )
            batcher = doors.gateway.registry.get("busy", "1").batcher
            await wait_until_async(lambda: batcher.queued_rows >= 1)
            doors.fast_listener.should_exit = True
            return await asking

    answers = asyncio.run(scenario())
    assert [answer.status for answer in answers] == [200, 200]
    assert [dict(answer.headers).get("connection") for answer in answers] == [None, "close"]


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path) as doors:
            doors.fast_listener.config.timeout_keep_alive = 1
            reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
            writer.write(post(INFER, rows(1.0)))
            await reader.readuntil(b"]}]}")
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())
