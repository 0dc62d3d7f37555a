"""A real HTTP server that answers as a test says, for what no gateway would do on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Received(NamedTuple):
    """One request; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


HANG_UP = Reply(status=0)
"""The connection is closed instead."""
SILENCE = Reply(status=-1)
"""Nothing comes until the test is over."""


class ScriptedServer:
    """Its address and what it received; `answer` makes each reply."""

    def __init__(self, answer: Callable[[Received], Reply]) -> None:
        self.received: list[Received] = []
        self._answer = answer
        self._is_over = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator[ScriptedServer]:
        """Serve until the end of the block; all its threads have ended then."""
        self._thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                """Any request."""
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                received = Received(self.command, self.path, headers, body)
                server.received.append(received)
                reply = server._answer(received)
                if reply in (HANG_UP, SILENCE):
                    self.close_connection = True
                    if reply is SILENCE:
                        server._is_over.wait(30.0)
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

            do_POST = do_GET  # noqa: N815 -- the name that http.server looks for

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
                """Nothing: what was received is in `received`."""

        return Handler


@contextmanager
def answering(*replies: Reply) -> Iterator[ScriptedServer]:
    """A server with these replies, one after the other, the last one again and again."""
    left = list(replies)
    with ScriptedServer(lambda _received: left.pop(0) if len(left) > 1 else left[0]).running() as server:
        yield server
