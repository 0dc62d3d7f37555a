"""Bodies of JSON and bytes as they arrive: through either door alike, large ones straight to where they stay."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import uvloop

from gateway.api.large_body import ALIGNMENT, LARGE_BODY_BYTES
from gateway.runtime.batcher import DynamicBatcher
from gateway.runtime.session import OnnxSession
from gateway.types import Array
from tests.support.doors import Doors, HttpAnswer, converse, doors_beside, exchange, two_doors
from tests.support.onnx_models import affine, affine_of_any_width, identity, pair, write_version
from tests.support.waiting import wait_until_async

LIMIT = 2**22
LARGE = 2**18
"""Floats of a body that no socket delivers in one piece, so that it is received where it stays."""
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_version(models, "wide", "1", affine_of_any_width())
    write_version(models, "affine", "1", affine())
    write_version(models, "versions", "1", affine())
    write_version(models, "versions", "2", affine(columns=4))
    write_version(models, "pair", "1", pair())
    write_version(models, "text", "1", identity("BYTES", ("n", 1)))
    return models


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def loop_run(request: pytest.FixtureRequest) -> Run:
    """The loop that the gateway runs on, and Python's own."""
    runner: Run = request.param
    return runner


def post(model: str, body: bytes, length: int | str | None, *fields: str) -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
    if length is not None:
        lines.append(f"Inference-Header-Content-Length: {length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def body_of(array: Array, *, padding: int = 0, **more: Any) -> tuple[bytes, int]:
    """The body of a request for a model with one input `x`, and how much of it is JSON."""
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}, **more}
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) + b" " * padding
    return head + array.tobytes(), len(head)


def binary(model: str, array: Array, *fields: str, padding: int = 0, **more: Any) -> bytes:
    return post(model, *body_of(array, padding=padding, **more), *fields)


def outputs_of(answer: HttpAnswer) -> dict[str, Array]:
    """FP32 outputs of a binary answer."""
    assert answer.status == 200, answer.body
    headers = dict(answer.headers)
    assert headers["content-type"] == "application/octet-stream"
    length = int(headers["inference-header-content-length"])
    outputs, start = {}, length
    for output in orjson.loads(answer.body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = np.frombuffer(answer.body[start : start + size], np.float32).reshape(output["shape"])
        start += size
    assert start == len(answer.body)
    return outputs


def floats(count: int, first: float = 0.0) -> Array:
    return (np.arange(count, dtype=np.float32) + np.float32(first)).reshape(1, count)


X = floats(3, 1.0)
BODY, LENGTH = body_of(X)
REQUESTS = [
    binary("wide", X),
    binary("wide", floats(5)),
    binary("wide", floats(0)),
    binary("wide", X, padding=3),
    binary("wide", X, id="one"),
    binary("wide", X, outputs=[{"name": "y", "parameters": {"binary_data": False}}]),
    binary("wide", X, outputs=[{"name": "y", "parameters": {"classification": 2}}]),
    binary("wide", X, outputs=[{"name": "no"}]),
    binary("wide", X, parameters={"priority": 1, "binary_data_output": True}),
    binary("wide", X, parameters={"priority": 9}),
    binary("nobody", X),
    binary("affine", X),
    binary("affine", floats(4)),
    binary("affine", np.zeros((0, 3), np.float32)),
    post("affine", X.tobytes(), 0),
    post("affine", X.tobytes() * 2, 0),
    post("affine", X.tobytes()[:-1], 0),
    post("affine", b"", 0),
    post("nobody", X.tobytes(), 0),
    post("wide", X.tobytes(), 0),
    post("pair", X.tobytes(), 0),
    post("text", "zwölf".encode(), 0),
    post("text", b"\xff", 0),
    post("versions", X.tobytes(), 0),
    post("versions/versions/1", X.tobytes(), 0),
    post("versions/versions/7", X.tobytes(), 0),
    *(post("wide", BODY, length) for length in ("", "-1", "x", "1.5", LENGTH + 1, LENGTH - 1, 10**30, len(BODY) + 1)),
    post("wide", BODY, len(BODY)),
    post("wide", BODY, None),
    post("wide", BODY + b"!", LENGTH),
    post("wide", BODY[:-1], LENGTH),
    post("wide", BODY, LENGTH, "Inference-Header-Content-Length: 7"),
    post("wide", BODY, "7", f"Inference-Header-Content-Length: {LENGTH}"),
    b"GET /v2 HTTP/1.1\r\nHost: here\r\n\r\n",
]
LARGE_REQUESTS = [
    binary("wide", floats(LARGE)),
    binary("wide", floats(LARGE, 7.0)),
    binary("wide", floats(LARGE + 1), padding=1),
    binary("wide", floats(LARGE), "X-Other: 1"),
    binary("wide", floats(LARGE), "Expect: 100-continue"),
    binary("wide", floats(LARGE), "Accept-Encoding: gzip"),
    post("affine", floats(3 * LARGE).tobytes(), 0),
    post("wide", b"{" * LARGE_BODY_BYTES * 2, LARGE_BODY_BYTES),
    post("wide", b"{" * LARGE_BODY_BYTES * 2, "x"),
    post("wide", b"{" * LARGE_BODY_BYTES * 2, 10**12),
]


LAST = [binary("wide", array, "Connection: close") for array in (X, floats(LARGE))]


def alike(answer: HttpAnswer) -> object:
    kept = {name: value for name, value in answer.headers if name not in {"date", "prediction-id", "server-timing"}}
    is_prediction = answer.status == 200 and (b"outputs" in answer.body or "content-encoding" in kept)
    assert ("prediction-id" in dict(answer.headers)) == is_prediction
    assert ("server-timing" in dict(answer.headers)) == is_prediction
    return answer.status, kept, answer.body


def cut(stream: bytes, rng: random.Random, most: int) -> list[bytes]:
    places = sorted(rng.sample(range(1, len(stream)), rng.randrange(most)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


async def compare(doors: Doors, requests: list[bytes], rng: random.Random, most_cuts: int) -> list[HttpAnswer]:
    stream = b"".join(requests)
    heads = [False] * len(requests)
    fast = await exchange(doors.fast, cut(stream, rng, most_cuts), heads)
    slow = await exchange(doors.slow, cut(stream, rng, most_cuts), heads)
    assert [alike(answer) for answer in fast] == [alike(answer) for answer in slow]
    assert len(fast) == len(requests)
    return fast


def test_each_request_is_answered_alike_by_both_doors(folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            for request in REQUESTS + LARGE_REQUESTS + LAST:
                # Again, once its head and its JSON are known.
                for _ in range(3):
                    await compare(doors, [request], random.Random(1), 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(4))
def test_pipelined_requests_in_random_pieces_are_answered_alike_and_in_order(
    folder: Path, tmp_path: Path, loop_run: Run, seed: int
) -> None:
    rng = random.Random(seed)

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            for _ in range(8):
                requests = rng.choices(REQUESTS, k=rng.randrange(1, 8)) + rng.choices(LARGE_REQUESTS, k=2)
                rng.shuffle(requests)
                requests += rng.choices(LAST, k=rng.randrange(2))
                await compare(doors, requests, rng, rng.choice((1, 4, 40)))

    loop_run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_one_after_the_other_on_one_connection(folder: Path, tmp_path: Path, loop_run: Run, seed: int) -> None:
    requests = random.Random(seed).choices(REQUESTS + 3 * LARGE_REQUESTS, k=60)

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            fast = await converse(doors.fast, requests)
            slow = await converse(doors.slow, requests)
            assert [alike(answer) for answer in fast] == [alike(answer) for answer in slow]

    loop_run(scenario())


class TestLargeBodies:
    def test_they_are_received_where_they_stay_and_aligned(self, folder: Path, tmp_path: Path, loop_run: Run) -> None:
        seen: list[Array] = []

        async def scenario() -> None:
            async with two_doors(folder, tmp_path, LIMIT) as doors:
                session = doors.gateway.registry.get("wide", "1").session
                batcher = doors.gateway.registry.get("wide", "1").batcher
                assert isinstance(session, OnnxSession)
                assert isinstance(batcher, DynamicBatcher)
                batcher._runner = Spy(session, seen)
                for padding in range(5):
                    requests = [binary("wide", floats(LARGE, n), padding=padding) for n in range(3)]
                    for number, answer in enumerate(await converse(doors.fast, requests)):
                        np.testing.assert_array_equal(outputs_of(answer)["y"], 2 * floats(LARGE, number) + 1)

        loop_run(scenario())
        aligned = [array.ctypes.data % ALIGNMENT == 0 for array in seen]
        owners = [array.base is not None for array in seen]
        # The first request with a head, and the padding of its JSON makes a new one, goes through the parser.
        assert [all(aligned[n : n + 2]) for n in range(1, 15, 3)] == [True] * 5
        assert [all(owners[n : n + 2]) for n in range(1, 15, 3)] == [True] * 5

    def test_a_client_that_leaves_in_the_middle_is_forgotten(self, folder: Path, tmp_path: Path, loop_run: Run) -> None:
        request = binary("wide", floats(LARGE))

        async def scenario() -> None:
            async with two_doors(folder, tmp_path, LIMIT) as doors:
                await converse(doors.fast, [request])
                connections = doors.fast_listener.server_state.connections
                await wait_until_async(lambda: not connections)
                for end in (len(request) - 1, len(request) // 2, len(request) - LARGE * 4):
                    _, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
                    writer.write(request[:end])
                    await writer.drain()
                    await wait_until_async(lambda: any(getattr(c, "_target", None) for c in connections))
                    writer.close()
                    await wait_until_async(lambda: not connections)
                assert [answer.status for answer in await converse(doors.fast, [request])] == [200]

        loop_run(scenario())

    def test_stopping_waits_for_one_that_is_half_sent(self, folder: Path, tmp_path: Path, loop_run: Run) -> None:
        request = binary("wide", floats(LARGE))

        async def scenario() -> bytes:
            async with two_doors(folder, tmp_path, LIMIT) as doors:
                await converse(doors.fast, [request])
                connections = doors.fast_listener.server_state.connections
                await wait_until_async(lambda: not connections)
                reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
                writer.write(request[:-10])
                await wait_until_async(lambda: any(getattr(c, "_target", None) for c in connections))
                for connection in list(connections):
                    connection.shutdown()
                writer.write(request[-10:])
                received = await reader.read()
                writer.close()
                return received

        head = loop_run(scenario()).partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in head

    def test_one_that_comes_slowly_is_not_idle(self, folder: Path, tmp_path: Path, loop_run: Run) -> None:
        request = binary("wide", floats(LARGE))

        async def scenario() -> None:
            async with two_doors(folder, tmp_path, LIMIT) as doors:
                await converse(doors.fast, [request])
                connections = doors.fast_listener.server_state.connections
                await wait_until_async(lambda: not connections)
                reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
                writer.write(request[:-3])
                await wait_until_async(lambda: any(getattr(c, "_target", None) for c in connections))
                (connection,) = connections
                for place in (-3, -2):
                    before = connection.last_data  # type: ignore[union-attr]
                    writer.write(request[place : place + 1])
                    await wait_until_async(lambda: connection.last_data > before)  # type: ignore[union-attr]  # noqa: B023
                writer.write(request[-1:])
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
                writer.close()

        loop_run(scenario())


class Spy:
    """A session that shows what it is given."""

    def __init__(self, session: Any, seen: list[Array]) -> None:
        self.signature = session.signature
        self._session = session
        self._seen = seen

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        """As the session does."""
        self._seen.extend(inputs.values())
        outputs: list[Array] = self._session.run(inputs)
        return outputs


def test_callers_with_json_and_with_bytes_share_a_run(folder: Path, tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    text = orjson.dumps({"inputs": [tensor]})

    async def scenario() -> None:
        async with two_doors(folder, tmp_path, LIMIT) as doors:
            requests = [post("affine", text, None), binary("affine", X)] * 20
            answers = await exchange(doors.fast, [b"".join(requests)], [False] * 40)
            for json_answer, binary_answer in zip(answers[::2], answers[1::2], strict=True):
                assert orjson.loads(json_answer.body)["outputs"][0]["data"] == [3.0, 5.0, 7.0]
                assert outputs_of(binary_answer)["y"].tolist() == [[3.0, 5.0, 7.0]]
            metrics = doors.gateway.metrics.version(doors.gateway.registry.get("affine", "1").key)
            assert metrics.rows == 40
            assert metrics.batches < 40

    asyncio.run(scenario())


HUGE = (
    b'{"inputs":[{"name":"x","shape":[4611686018427387904,4],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'
)
BAD = {
    "the length is beyond the body": post("wide", BODY, len(BODY) + 1),
    "the length is negative": post("wide", BODY, -1),
    "the length is no number": post("wide", BODY, "many"),
    "bytes are left over": post("wide", BODY + bytes(1000), LENGTH),
    "sizes disagree": post("wide", BODY[:-4], LENGTH),
    "the shape is huge": post("wide", HUGE + bytes(4), len(HUGE)),
    "the shape is negative": binary(
        "wide", X, inputs=[{"name": "x", "shape": [-1, 3], "datatype": "FP32", "data": []}]
    ),
    "a tensor occurs twice": binary(
        "wide", X, inputs=[{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}] * 2
    ),
    "a tensor is unknown": post("wide", BODY.replace(b'"x"', b'"z"'), LENGTH),
    "JSON is nested deeply": post("wide", b"[" * 100_000, 100_000),
    "JSON is no UTF-8": post("wide", BODY.replace(b'"x"', b'"\xff"'), LENGTH),
    "a whole number does not fit": binary(
        "pair", X, inputs=[{"name": "b", "shape": [1], "datatype": "INT64", "data": [2**63]}]
    ),
    "data come twice": post("wide", BODY.replace(b'"shape"', b'"data":[],"shape"'), LENGTH + 10),
    "a text has a false length": post(
        "text",
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":8}}]}\xff\xff\xff\xffabcd',
        94,
    ),
}


@pytest.fixture(scope="module")
def doors(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with doors_beside(folder, tmp_path_factory.mktemp("gateway"), LIMIT) as opened:
        yield opened


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_at_once_in_one_line(doors: Doors, what: str) -> None:
    started = time.process_time()
    answers = asyncio.run(converse(doors.fast, [BAD[what]] * 20))
    # Of client and gateway together.
    assert (time.process_time() - started) / 20 < 0.005
    for answer in answers + asyncio.run(converse(doors.slow, [BAD[what]])):
        assert answer.status == 400, answer.body
        message = orjson.loads(answer.body)["error"]
        assert "\n" not in message
        assert len(message) < 300
