"""The public port's HTTP protocol: inference requests are answered from the parser's callbacks.

A subclass of uvicorn's `HttpToolsProtocol`. What it recognises (`POST /v2/models/{model}[/versions/{version}]/infer`
over HTTP/1.1 with nothing unusual in the headers) costs no ASGI scope, no task and no future; every other request is
handed to Starlette untouched. There is one parser, httptools, for both. What it made of a head is remembered: a client
that sends the same bytes again, with a body of the announced length and nothing after it, means the same again.

Answers leave in the order of the requests. A fast request behind a slow one goes the slow way too, where uvicorn keeps
the order; a slow one behind fast ones is started when these are answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.api.body import too_large
from gateway.api.door import Answer, InferenceDoor
from gateway.api.recognition import Head, RequestHeaders, ServerShare, Target
from gateway.api.slot import Slot
from gateway.errors import GatewayError
from gateway.telemetry.trace_context import TRACEPARENT

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 128
"""Pipelined requests of one connection that may wait for their answers; past it the connection is not read."""
UNUSUAL_HEADERS = frozenset((b"inference-header-content-length", b"content-encoding", b"upgrade"))
"""Whoever sends one of these asks for more than the fast path does."""
TRACE_HEADER = TRACEPARENT.encode()
NOTED_HEADERS = UNUSUAL_HEADERS | {b"content-length", b"expect", TRACE_HEADER}
DISCARD_FACTOR = 16
"""How many times the limit is read over of a body that was refused, before the connection is closed on it."""
OK = 200
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END = b"\r\n\r\n"
OK_ANSWER = b"%b%b\r\ncontent-length: %d\r\n\r\n%b"


class FastProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: InferenceDoor,
        share: ServerShare,
        max_body_bytes: int,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Of the server.
        self.door = door
        self._share = share
        self._max_body_bytes = max_body_bytes
        # Of the connection.
        self.slots: deque[Slot] = deque()
        self._request_headers = RequestHeaders()
        self._is_stopping = False
        self._malformed: str | None = None
        self._running: RequestResponseCycle | None = None
        self._last_data = 0.0
        self._is_between = True
        """The parser has read whole requests and nothing of the next."""
        self._idle_timer: asyncio.TimerHandle | None = None
        # Of the request that is being read.
        self._target: Target | None = None
        self._is_unusual = False
        self._is_refused = False
        self._start = b""
        """What came in one piece with the first byte of the request."""
        self._length: int | None = None
        """Of the body, if the head announces it."""
        self._traceparent = ""
        self._body: list[bytes] = []
        self._size = 0

    # -- The transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        self._last_data = self.loop.time()
        self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it still waits for is not run."""
        for slot in self.slots:
            self.door.abandon(slot)
        self.slots.clear()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls back below, unless it has read these very bytes before."""
        self._last_data = self.loop.time()
        if self._is_between and not self._is_stopping:
            end = data.find(HEAD_END)
            head = self._share.heads.get(data[:end])
            if head is not None and len(data) == end + 4 + head.length and not self._slow_is_pending():
                self._admit(Slot(self, head.target, is_last=False), head.fields, data[end + 4 :])
                return
            self._start = data
        super().data_received(data)

    def pause_writing(self) -> None:
        """The client does not read its answers: take no more requests from it."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if not self.pipeline and len(self.slots) < MAX_IN_FLIGHT:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server stops: answer what is in flight, a request that is half read among it, then close."""
        if not self.slots and self._target is None:
            super().shutdown()
            return
        self._is_stopping = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _close_if_idle(self) -> None:
        """One timer a connection, moved on when it fires, instead of one set and cancelled for each request."""
        is_busy = bool(self.slots) or self._slow_is_pending()
        idle_for = 0.0 if is_busy else self.loop.time() - self._last_data
        if idle_for >= self.timeout_keep_alive:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive - idle_for, self._close_if_idle)

    # -- The parser ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; its ASGI scope is made only if it goes the slow way."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._is_unusual = False
        self._is_between = False
        self._length = None
        self._traceparent = ""
        self._target = None

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self.url = self.url + url if self.url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        name = name.lower()
        self.headers.append((name, value))
        if name in NOTED_HEADERS:
            self._note(name, value)

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        target = self._share.target(self.url)
        if target is None or not self._is_fast():
            self._go_slow()
            return
        self._target = target
        self._body = []
        self._size = 0
        if self.expect_100_continue:
            self.transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._target is None:
            super().on_body(body)
            return
        self._size += len(body)
        if self._size > self._max_body_bytes:
            self._refuse_body(self._target)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole: go on with it."""
        target = self._target
        self._is_between = True
        if target is None:
            super().on_message_complete()
            return
        self._target = None
        if self._is_refused:
            self._is_refused = False
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        is_last = not self.parser.should_keep_alive()
        if not is_last and not self.expect_100_continue:
            self._remember(target, body)
        slot = Slot(self, target, is_last)
        slot.traceparent = self._traceparent
        self._admit(slot, self.headers, body)

    def _remember(self, target: Target, body: bytes) -> None:
        """Spare the parser this head from now on, if the request came in one piece and nothing else with it."""
        raw, end, rest = self._start.partition(HEAD_END)
        self._start = b""
        # A client that stamps its requests stamps each anew, so its heads do not come again.
        if end and rest == body and len(body) == self._length and not self._traceparent:
            self._share.learn(raw, Head(target, self.headers, len(body)))

    def _admit(self, slot: Slot, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Decode and admit a request, and go on reading."""
        model, version = slot.target
        slots = self.slots
        slots.append(slot)
        headers = self._request_headers
        headers.fields = fields
        try:
            self.door.submit(model, version, body, headers, slot)
        except GatewayError as error:
            slot.answer(error)
        except Exception:
            # A bug, but one that must not keep this and all later requests of the connection waiting.
            logger.exception("admitting a request failed")
            slot.answer(GatewayError("internal error; the gateway's log says more"))
        if len(slots) >= MAX_IN_FLIGHT:
            self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's own answer to what is not HTTP, in its turn."""
        # What the parser was reading will never be whole, and it reads no more.
        self._target = None
        self._is_between = False
        half_read = self.cycle
        if half_read is not None and half_read.more_body:
            self.pipeline = deque(queued for queued in self.pipeline if queued[0] is not half_read)
            if self._running is half_read:
                self._running = None
        self._malformed = msg
        self._answer_malformed()

    def on_response_complete(self) -> None:
        """A slow answer has been sent."""
        super().on_response_complete()
        self._answer_malformed()

    def _answer_malformed(self) -> None:
        if self._malformed is not None and not self.slots and not self._slow_is_pending():
            super().send_400_response(self._malformed)

    def _slow_is_pending(self) -> bool:
        """Whether Starlette has yet to answer something."""
        return bool(self.pipeline) or (self._running is not None and not self._running.response_complete)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Uvicorn's turn, unless fast requests that came earlier are still unanswered."""
        if self.slots:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def _refuse_body(self, target: Target) -> None:
        """A chunked body, whose size was not known before, is too large: answer at once, and read over the rest."""
        if not self._is_refused:
            self._is_refused = True
            self._body = []
            slot = Slot(self, target, not self.parser.should_keep_alive())
            slot.traceparent = self._traceparent
            self.slots.append(slot)
            slot.answer(too_large(self._max_body_bytes))
        elif self._size > DISCARD_FACTOR * self._max_body_bytes:
            self.transport.close()

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            # What announces that it is too large is refused before it is read, which Starlette's endpoint does.
            self._length = int(value)
            self._is_unusual |= self._length > self._max_body_bytes
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif name == TRACE_HEADER:
            # Of several the first counts, as for Starlette.
            self._traceparent = self._traceparent or value.decode("latin-1")
        else:
            self._is_unusual = True

    def _is_fast(self) -> bool:
        """Whether an inference request may overtake Starlette."""
        parser = self.parser
        if self._is_unusual or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
            return False
        return not self._slow_is_pending() and not (self.expect_100_continue and self.slots)

    def _go_slow(self) -> None:
        """Hand the request to uvicorn as if it had had it from the start."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    # -- Answers -------------------------------------------------------------------------------------------------------

    def send_ok(self, slot: Slot, body: bytes) -> None:
        """Send a 200; of a client that does not pipeline, each is the only one that the connection waits for."""
        slots = self.slots
        if len(slots) > 1 or slot.is_last or self._is_stopping:
            self.send(slot, (OK, body, slot.prediction_id.decode(), None))
            return
        slots.clear()
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            share, fields = self._share, self.server_state.default_headers
            head = share.head if share.fields is fields else share.ok_head(fields)
            self.transport.write(OK_ANSWER % (head, slot.prediction_id, len(body), body))
            if self.flow.read_paused or self.pipeline or self._malformed is not None:
                self._go_on()

    def send(self, slot: Slot, answer: Answer) -> None:
        """Send an answer as soon as its turn comes."""
        slot.sent = answer
        if self.slots[0] is slot:
            self._flush()

    def _flush(self) -> None:
        """Send the answers whose turn has come."""
        slots = self.slots
        parts: list[bytes] = []
        is_last = False
        while slots and not is_last and (answer := slots[0].sent) is not None:
            slot = slots.popleft()
            is_last = slot.is_last or (self._is_stopping and self._is_done())
            parts.append(self._encode(answer, is_last=is_last))
        self.server_state.total_requests += len(parts)
        if self.transport.is_closing():
            return
        self.transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if is_last:
            self.transport.close()
        elif not slots:
            if self.pipeline or self._malformed is not None or self.flow.read_paused:
                self._go_on()
        elif self.flow.read_paused and len(slots) < MAX_IN_FLIGHT and not self.flow.write_paused:
            self.flow.resume_reading()

    def _is_done(self) -> bool:
        """Nothing is waiting, queued or half read."""
        return not self.slots and not self.pipeline and self._target is None

    def _go_on(self) -> None:
        """Every fast request is answered: turn to what waited for that."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._malformed is not None:
            self._answer_malformed()
        elif not self.flow.write_paused:
            self.flow.resume_reading()

    def _encode(self, answer: Answer, *, is_last: bool) -> bytes:
        status, body, prediction_id, retry_after = answer
        close = b"\r\nconnection: close" if is_last else b""
        if status == OK:
            head = self._share.ok_head(self.server_state.default_headers)
            return OK_ANSWER % (head, prediction_id.encode() + close, len(body), body)
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json".encode()
        fields = b"".join(b"\r\n" + name + b": " + value for name, value in self.server_state.default_headers)
        wait = b"\r\nretry-after: %d" % retry_after if retry_after is not None else b""
        return b"%b%b%b%b\r\ncontent-length: %d\r\n\r\n%b" % (line, fields, wait, close, len(body), body)
