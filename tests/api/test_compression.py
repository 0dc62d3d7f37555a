"""Compressed bodies, both ways, through both doors: no limit is passed by it, and nobody waits for it."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import pytest

from gateway.api.compression import (
    MIN_COMPRESSED_BYTES,
    STEP_BYTES,
    accepted_encoding,
    content_encoding,
    decompress,
)
from gateway.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from tests.support.doors import Doors, HttpAnswer, converse, doors_beside, exchange
from tests.support.onnx_models import affine_of_any_width, identity, write_version

LIMIT = 65_536
INFER = "/v2/models/affine/infer"
CODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": partial(gzip.compress, mtime=0), "deflate": zlib.compress}
DECODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    write_version(models, "affine", "1", affine_of_any_width())
    write_version(models, "noise", "1", identity("UINT8", ("n", "m")))
    return models


def row(columns: int) -> bytes:
    data = [0.0] * columns
    return orjson.dumps({"inputs": [{"name": "x", "shape": [1, columns], "datatype": "FP32", "data": data}]})


def post(body: bytes, *fields: str, path: str = INFER) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def doors(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with doors_beside(folder, tmp_path_factory.mktemp("gateway"), LIMIT) as opened:
        yield opened


def ask(doors: Doors, requests: list[bytes]) -> tuple[list[HttpAnswer], list[HttpAnswer]]:
    """Answers of both doors."""
    return asyncio.run(converse(doors.fast, requests)), asyncio.run(converse(doors.slow, requests))


class TestRequests:
    @pytest.mark.parametrize("coding", CODERS)
    def test_a_compressed_body_is_the_body_that_it_was(self, coding: str) -> None:
        body = row(500)
        assert decompress(CODERS[coding](body), coding, len(body)) == body
        assert decompress(CODERS[coding](b""), coding, 0) == b""

    @pytest.mark.parametrize("coding", CODERS)
    def test_the_limit_is_of_what_it_was(self, coding: str) -> None:
        with pytest.raises(PayloadTooLarge, match="exceeds 99 bytes"):
            decompress(CODERS[coding](bytes(100)), coding, 99)

    @pytest.mark.parametrize("limit", [LIMIT, 64 * 2**20])
    @pytest.mark.parametrize("coding", CODERS)
    def test_a_bomb_takes_next_to_no_memory_and_time(self, coding: str, limit: int) -> None:
        bomb = CODERS[coding](bytes(200_000_000))
        seconds = []
        for _ in range(3):
            started = time.process_time()
            with pytest.raises(PayloadTooLarge):
                decompress(bomb, coding, limit)
            seconds.append(time.process_time() - started)
        assert min(seconds) < 0.005
        tracemalloc.start()
        with pytest.raises(PayloadTooLarge):
            decompress(bomb, coding, limit)
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # zlib hands over what it made in a buffer that it doubles.
        assert peak < 4 * STEP_BYTES
        assert left < 10_000

    @pytest.mark.parametrize("coding", CODERS)
    def test_a_bomb_behind_honest_bytes_is_one_too(self, coding: str) -> None:
        honest = np.random.default_rng(1).bytes(2**17)
        with pytest.raises(PayloadTooLarge, match="over 200 times its size; send it without Content-Encoding"):
            decompress(CODERS[coding](honest + bytes(60_000_000)), coding, 64 * 2**20)

    @pytest.mark.parametrize("coding", CODERS)
    @pytest.mark.parametrize("size", [STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES])
    def test_a_long_body_is_put_together_again(self, coding: str, size: int) -> None:
        body = np.random.default_rng(size).integers(0, 9, size, np.uint8).tobytes()
        assert decompress(CODERS[coding](body), coding, size) == body
        with pytest.raises(PayloadTooLarge, match=f"exceeds {size - 1} bytes"):
            decompress(CODERS[coding](body), coding, size - 1)

    @pytest.mark.parametrize("coding", CODERS)
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda body: b"", "data are not complete"),
            (lambda body: body[:-1], "data are not complete"),
            (lambda body: body + b"!", "1 bytes too many after the"),
            (lambda body: body + body, "bytes too many after the"),
            (lambda body: b"{" + body, "as Content-Encoding says it is"),
            (lambda body: body[:-6] + bytes(6), "as Content-Encoding says it is"),
        ],
    )
    def test_what_is_damaged_is_refused(self, coding: str, damage: Callable[[bytes], bytes], message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            decompress(damage(CODERS[coding](row(3))), coding, LIMIT)
        assert caught.value.message.startswith("body: ")
        assert message in caught.value.message

    @pytest.mark.parametrize(
        ("value", "coding"),
        [(None, None), ("", None), ("identity", None), ("GZIP", "gzip"), (" x-gzip ", "gzip"), ("Deflate", "deflate")],
    )
    def test_codings_by_name(self, value: str | None, coding: str | None) -> None:
        assert content_encoding(value) == coding

    @pytest.mark.parametrize("value", ["br", "zstd", "gzip, deflate", "identity, gzip", "x" * 5_000])
    def test_other_codings_are_refused(self, value: str) -> None:
        with pytest.raises(UnsupportedEncoding, match="expected one of gzip, deflate or none") as caught:
            content_encoding(value)
        assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip", "gzip"),
        ("br", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0.5, deflate;q=0.6", "deflate"),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0.5, identity;q=0.4", "gzip"),
        ("identity", None),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("GZip ; Q=1.0", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip;q=x", None),
        ("gzip;q=-1", None),
        ("gzip;q=nan", None),
        (",,;=,", None),
    ],
)
def test_the_client_says_what_it_likes(value: str, coding: str | None) -> None:
    assert accepted_encoding(value) == coding


class TestDoors:
    @pytest.mark.parametrize("coding", CODERS)
    def test_compressed_requests_and_answers(self, doors: Doors, coding: str) -> None:
        plain = post(row(2_000))
        packed = post(CODERS[coding](row(2_000)), f"Content-Encoding: {coding}", f"Accept-Encoding: {coding}")
        for answers in ask(doors, [plain, packed, packed, plain]):
            assert [answer.status for answer in answers] == [200] * 4
            codings = [dict(answer.headers).get("content-encoding") for answer in answers]
            assert codings == [None, coding, coding, None]
            assert DECODERS[coding](answers[1].body) == answers[0].body

    @pytest.mark.parametrize("coding", CODERS)
    def test_a_binary_answer_is_compressed_as_a_whole(self, doors: Doors, coding: str) -> None:
        values = np.zeros((1, 1_000), np.float32).tobytes()
        tensor = {"name": "x", "shape": [1, 1_000], "datatype": "FP32", "parameters": {"binary_data_size": 4_000}}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        fields = (f"Inference-Header-Content-Length: {len(head)}", f"Accept-Encoding: {coding}")
        packed = post(CODERS[coding](head + values), f"Content-Encoding: {coding}", *fields)
        for answers in ask(doors, [packed, post(head + values, *fields)]):
            for answer in answers:
                headers = dict(answer.headers)
                assert (answer.status, headers["content-encoding"]) == (200, coding)
                assert headers["content-type"] == "application/octet-stream"
                content = DECODERS[coding](answer.body)
                length = int(headers["inference-header-content-length"])
                assert orjson.loads(content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 4_000}
                assert np.frombuffer(content[length:], np.float32).tolist() == [1.0] * 1_000

    def test_v1_as_well(self, doors: Doors) -> None:
        body = gzip.compress(orjson.dumps({"instances": [[0.0] * 2_000]}))
        fields = ("Content-Encoding: gzip", "Accept-Encoding: deflate")
        for (answer,) in ask(doors, [post(body, *fields, path="/v1/models/affine:predict")]):
            assert (answer.status, dict(answer.headers)["content-encoding"]) == (200, "deflate")
            assert orjson.loads(zlib.decompress(answer.body)) == {"predictions": [[1.0] * 2_000]}

    def test_short_answers_and_those_that_do_not_shrink_are_sent_as_they_are(self, doors: Doors) -> None:
        noise = np.random.default_rng(1).integers(0, 256, 3_000, np.uint8).tobytes()
        tensor = {"name": "x", "shape": [1, 3_000], "datatype": "UINT8", "parameters": {"binary_data_size": 3_000}}
        head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        requests = [
            post(row(3), "Accept-Encoding: gzip"),
            post(
                head + noise,
                "Accept-Encoding: gzip",
                f"Inference-Header-Content-Length: {len(head)}",
                path="/v2/models/noise/infer",
            ),
            post(b"{", "Accept-Encoding: gzip"),
        ]
        for answers in ask(doors, requests):
            assert [answer.status for answer in answers] == [200, 200, 400]
            assert all("content-encoding" not in dict(answer.headers) for answer in answers)
            assert len(answers[0].body) < MIN_COMPRESSED_BYTES < len(answers[1].body)

    @pytest.mark.parametrize(
        ("body", "fields", "status", "message"),
        [
            (
                row(3),
                ("Content-Encoding: br",),
                501,
                "Content-Encoding: expected one of gzip, deflate or none, got 'br'",
            ),
            (row(3), ("Content-Encoding: gzip",), 400, "body: not gzip, as Content-Encoding says it is"),
            (CODERS["gzip"](bytes(LIMIT + 1)), ("Content-Encoding: gzip",), 413, f"the body exceeds {LIMIT} bytes"),
            (zlib.compress(bytes(10**7)), ("Content-Encoding: deflate",), 413, f"the body exceeds {LIMIT} bytes"),
            (CODERS["gzip"](row(3))[:-1], ("Content-Encoding: gzip",), 400, "body: the gzip data are not complete"),
            (
                CODERS["gzip"](row(3)),
                ("Content-Encoding: gzip", "Inference-Header-Content-Length: 9999"),
                400,
                f"Inference-Header-Content-Length: '9999' bytes of JSON, but the body has {len(row(3))}",
            ),
        ],
        ids=["other coding", "not gzip", "gzip bomb", "deflate bomb", "cut short", "false length"],
    )
    def test_what_cannot_be_is_refused(
        self, doors: Doors, body: bytes, fields: tuple[str, ...], status: int, message: str
    ) -> None:
        for (answer,) in ask(doors, [post(body, *fields)]):
            assert answer.status == status
            assert orjson.loads(answer.body)["error"].startswith(message)
            assert dict(answer.headers).get("accept-encoding") == ("gzip, deflate" if status == 501 else None)

    def test_answers_keep_their_order_while_one_is_compressed(self, doors: Doors) -> None:
        requests = [post(row(columns), "Accept-Encoding: gzip") for columns in (5_000, 3, 5_000, 4)] * 5
        answers = asyncio.run(exchange(doors.fast, [b"".join(requests)], [False] * len(requests)))
        sizes = [
            orjson.loads(gzip.decompress(a.body) if "content-encoding" in dict(a.headers) else a.body)["outputs"][0]
            for a in answers
        ]
        assert [output["shape"][1] for output in sizes] == [5_000, 3, 5_000, 4] * 5

    def test_a_client_that_leaves_while_its_answer_is_compressed_hurts_nobody(self, doors: Doors) -> None:
        async def scenario() -> list[HttpAnswer]:
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
                writer.write(post(row(12_000), "Accept-Encoding: gzip"))
                await writer.drain()
                writer.close()
            return await converse(doors.fast, [post(row(3))])

        assert [answer.status for answer in asyncio.run(scenario())] == [200]
