"""Both clients against a server that fails on demand: what is tried again, what is sent, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from gateway.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    InferenceError,
    InvalidResponse,
    Result,
    TimedOut,
    Unavailable,
    Unreachable,
)
from tests.support.asking import Ask
from tests.support.running import clean_environment
from tests.support.scripted_server import HANG_UP, SILENCE, Reply, ScriptedServer, answering

X = {"x": np.array([[1, 2]], np.float32)}
ANSWER = Reply(body=b'{"model_name":"m","outputs":[{"name":"y","shape":[1],"datatype":"INT8","data":[7]}]}')
FULL = Reply(429, b'{"error":"the queue is full"}', {"Retry-After": "0"})
DOWN = Reply(503, b'{"error":"no"}', {"Retry-After": "0"})
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def infer(client: Any) -> Any:
    return client.infer("m", X)


def feedback(client: Any) -> Any:
    return client.feedback("id", 1)


def failure(ask: Ask, server: ScriptedServer, action: Callable[[Any], Any], **options: Any) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        ask(server.url, action, **options)
    return caught.value


class TestTryingAgain:
    @pytest.mark.parametrize("refusals", [[FULL], [DOWN], [FULL, DOWN]], ids=["429", "503", "both"])
    def test_a_refusal_for_now_is_followed_by_another_try(self, ask: Ask, refusals: Sequence[Reply]) -> None:
        with answering(*refusals, ANSWER) as server:
            result: Result = ask(server.url, infer)
        assert result.outputs["y"].tolist() == [7]
        assert len(server.received) == len(refusals) + 1
        assert len({request.body for request in server.received}) == 1

    def test_labels_too(self, ask: Ask) -> None:
        with answering(DOWN, Reply(body=b'{"accepted":true,"duplicate":false}')) as server:
            assert ask(server.url, feedback) is True
        assert len(server.received) == 2

    def test_the_last_refusal_is_the_error(self, ask: Ask) -> None:
        with answering(FULL) as server:
            error = failure(ask, server, infer, retries=1)
        assert (type(error), error.status, error.message, error.retry_after) == (
            Unavailable,
            429,
            "the queue is full",
            0.0,
        )
        assert len(server.received) == 2

    @pytest.mark.parametrize("form", ["seconds", "date"])
    def test_it_waits_as_long_as_it_was_told(self, ask: Ask, form: str) -> None:
        told = []

        def answer(_received: object) -> Reply:
            told.append(time.time())
            # A date says whole seconds, so this one is more than one and at most two away.
            wait = "1" if form == "seconds" else formatdate(int(told[0]) + 2, usegmt=True)
            return ANSWER if len(told) > 1 else Reply(503, b"", {"Retry-After": wait})

        with ScriptedServer(answer).running() as server:
            ask(server.url, infer)
        first, second = told
        assert second >= (first + 1.0 if form == "seconds" else int(first) + 2)

    def test_it_does_not_wait_beyond_its_budget(self, ask: Ask) -> None:
        with answering(Reply(503, b'{"error":"later"}', {"Retry-After": "3600"})) as server:
            error = failure(ask, server, infer)
        assert (len(server.received), error.retry_after) == (1, 3600.0)

    def test_without_retries_it_asks_once(self, ask: Ask) -> None:
        with answering(FULL, ANSWER) as server:
            failure(ask, server, infer, retries=0)
        assert len(server.received) == 1

    def test_a_lost_connection_is_followed_by_another_try_for_a_prediction(self, ask: Ask) -> None:
        with answering(HANG_UP, ANSWER) as server:
            assert ask(server.url, infer).model_name == "m"
        assert len(server.received) == 2

    def test_a_label_that_may_have_arrived_is_not_sent_again(self, ask: Ask) -> None:
        with answering(HANG_UP) as server:
            assert isinstance(failure(ask, server, feedback), ConnectionLost)
        assert len(server.received) == 1

    def test_where_nobody_listens_says_where_that_was(self, ask: Ask) -> None:
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1/v2/models"):
            ask("http://127.0.0.1:1", lambda client: client.models(), retries=1)

    def test_not_ready_is_an_answer(self, ask: Ask) -> None:
        with answering(DOWN) as server:
            assert ask(server.url, lambda client: client.ready()) is False
        assert len(server.received) == 1


class TestTimeouts:
    @pytest.mark.parametrize("whose", ["client", "call"])
    def test_silence_ends_after_the_timeout_and_is_not_asked_again(self, ask: Ask, whose: str) -> None:
        with answering(SILENCE) as server:
            begun = time.monotonic()
            if whose == "client":
                error = failure(ask, server, infer, timeout=0.2)
            else:
                error = failure(ask, server, lambda client: client.infer("m", X, timeout=0.2))
            assert time.monotonic() - begun < 5.0
        assert isinstance(error, TimedOut)
        assert error.message.startswith(f"POST {server.url}/v2/models/m/infer: ")
        assert len(server.received) == 1


class TestWhatIsSent:
    def sent(self, ask: Ask, url_path: str = "", options: dict[str, Any] | None = None, **call: Any) -> Any:
        """The one request of a call."""
        with answering(ANSWER) as server:
            ask(server.url + url_path, lambda client: client.infer("m", X, **call), **(options or {}))
        (request,) = server.received
        return request

    def test_names_are_quoted_and_a_path_comes_first(self, ask: Ask) -> None:
        assert self.sent(ask, "/base", version="3").path == "/base/v2/models/m/versions/3/infer"
        with answering(ANSWER) as server:
            ask(server.url, lambda client: client.infer("a/b ü?", X))
        assert server.received[0].path == "/v2/models/a%2Fb%20%C3%BC%3F/infer"

    def test_headers_of_the_client_and_of_the_call(self, ask: Ask) -> None:
        headers = self.sent(
            ask, options={"headers": {"X-A": "1", "X-B": "1"}}, headers={"x-user-id": "u", "X-B": "2"}
        ).headers
        assert (headers["x-a"], headers["x-b"], headers["x-user-id"]) == ("1", "2", "u")
        assert headers["accept-encoding"] == "identity"

    def test_a_traceparent_that_is_given(self, ask: Ask) -> None:
        assert "traceparent" not in self.sent(ask).headers
        assert self.sent(ask, traceparent=TRACEPARENT).headers["traceparent"] == TRACEPARENT

    def test_the_span_that_is_current_unless_the_caller_says_another(self, ask: Ask) -> None:
        context = trace.SpanContext(0x1234 << 64, 0x5678, is_remote=False, trace_flags=trace.TraceFlags(1))
        other = TRACEPARENT.replace("b7", "00")
        with trace.use_span(trace.NonRecordingSpan(context)):
            current = self.sent(ask).headers["traceparent"]
            assert current == f"00-{0x1234 << 64:032x}-{0x5678:016x}-01"
            assert self.sent(ask, headers={"Traceparent": other}).headers["traceparent"] == other
            assert self.sent(ask, traceparent=TRACEPARENT).headers["traceparent"] == TRACEPARENT


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("call", "words"),
        [
            ({"model": ""}, "model: expected a name"),
            ({"model": ".."}, "model: expected a name"),
            ({"version": 3}, "version: expected a name, got 3"),
            ({"inputs": {"x": [1.0]}}, "expected a numpy array"),
            ({"headers": {"Content-Type": "text/plain"}}, "content-type describes the body"),
            ({"headers": {"Inference-Header-Content-Length": "3"}}, "describes the body"),
            ({"traceparent": "00-00000000000000000000000000000000-b7ad6b7169203331-01"}, "traceparent"),
            ({"traceparent": TRACEPARENT.upper()}, "traceparent"),
            ({"timeout": 0.0}, "timeout: expected more than 0 seconds"),
        ],
    )
    def test_a_call_that_cannot_be_is_not_sent(self, ask: Ask, call: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            ask("http://127.0.0.1:1", lambda client: client.infer(**{"model": "m", "inputs": X, **call}))

    @pytest.mark.parametrize("kind", [Client, AsyncClient])
    @pytest.mark.parametrize(
        ("url", "options"),
        [
            ("127.0.0.1:8080", {}),
            ("ftp://gateway", {}),
            ("http://", {}),
            ("http://gateway", {"retries": -1}),
            ("http://gateway", {"max_wait": -1.0}),
            ("http://gateway", {"max_wait": float("nan")}),
            ("http://gateway", {"max_connections": 0}),
            ("http://gateway", {"timeout": 0.0}),
            ("http://gateway", {"headers": {"content-length": "1"}}),
        ],
    )
    def test_a_client_that_cannot_be_is_not_made(self, kind: Any, url: str, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"expected|describes"):
            kind(url, **options)

    @pytest.mark.parametrize(
        "action",
        [
            infer,
            feedback,
            lambda client: client.models(),
            lambda client: client.metadata("m"),
        ],
        ids=["infer", "feedback", "models", "metadata"],
    )
    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"models":3,"inputs":[{}]}'])
    def test_an_answer_of_something_else_is_an_error(self, ask: Ask, action: Callable[[Any], Any], body: bytes) -> None:
        with answering(Reply(body=body)) as server:
            error = failure(ask, server, action)
        assert (type(error), error.status) == (InvalidResponse, 200)
        assert len(server.received) == 1

    def test_an_answer_that_cannot_be_unpacked_is_an_error(self, ask: Ask) -> None:
        with answering(Reply(body=b"no gzip", headers={"Content-Encoding": "gzip"})) as server:
            assert server.url in failure(ask, server, infer).message


IMPORTS = """
import sys
import gateway.client
print(sorted({"onnxruntime", "starlette", "redis", "uvicorn", "pydantic", "typer"} & sys.modules.keys()))
"""

CLOSING = """
import asyncio, gc, sys
from gateway.client import AsyncClient, Client

async def scenario():
    async with AsyncClient(sys.argv[1]) as client:
        await asyncio.gather(*(client.ready() for _ in range(3)))

with Client(sys.argv[1]) as client:
    client.ready()
asyncio.run(scenario())
del client
gc.collect()
"""


def output_of(code: str, *arguments: str) -> str:
    """Everything that fresh interpreters print, which mind what is left open; fails unless they end well."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class TestCleanliness:
    def test_the_import_brings_no_server_with_it(self) -> None:
        assert output_of(IMPORTS) == "[]\n"

    def test_it_works_without_opentelemetry(self) -> None:
        with answering(ANSWER) as server:
            code = (
                "import sys; sys.modules['opentelemetry'] = None; import numpy as np\n"
                "from gateway.client import Client\n"
                "with Client(sys.argv[1]) as client:\n"
                "    print(client.infer('m', {'x': np.zeros(1)}).outputs['y'])\n"
            )
            assert output_of(code, server.url) == "[7]\n"
        assert "traceparent" not in server.received[0].headers

    def test_nothing_is_left_open(self) -> None:
        with answering(Reply()) as server:
            assert output_of(CLOSING, server.url) == ""
