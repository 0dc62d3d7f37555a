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
from time import monotonic
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.api.body import too_large
from gateway.api.door import Answer, Body, InferenceDoor
from gateway.api.large_body import LARGE_BODY_BYTES, LargeBody, hand_over, new_parser
from gateway.api.recognition import NOTED_HEADERS, Head, HeadNotes, RequestHeaders, ServerShare, Target
from gateway.api.slot import CompressingSlot, Slot
from gateway.api.wire import head_of, ok_answer, write_all
from gateway.errors import GatewayError

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 128
"""Pipelined requests of one connection that may wait for their answers; past it the connection is not read."""
DISCARD_FACTOR = 16
"""How many times the limit is read over of a body that was refused, before the connection is closed on it."""
OK = 200
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END = b"\r\n\r\n"


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
        self.last_data = 0.0
        self._is_between = True
        """The parser has read whole requests and nothing of the next."""
        self._idle_timer: asyncio.TimerHandle | None = None
        # Of the request that is being read.
        self._target: Target | None = None
        self._notes = HeadNotes(max_body_bytes)
        self._is_refused = False
        self._start = b""
        """What came in one piece with the first byte of the request, if nothing stood before that."""
        self._body: list[bytes] = []
        self._size = 0

    # -- The transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        super().connection_made(transport)
        self.last_data = self.loop.time()
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
        self.last_data = self.loop.time()
        if self._is_between and not self._is_stopping:
            end = data.find(HEAD_END)
            head = self._share.heads.get(data[:end])
            if head is not None and not self._slow_is_pending():
                missing = end + 4 + head.length - len(data)
                if missing == 0:
                    self._admit(head, data[end + 4 :], is_last=False)
                    return
                if missing >= LARGE_BODY_BYTES and head.announced is not None:
                    self._receive(head, memoryview(data)[end + 4 :], is_last=False)
                    return
            self._start = data
        super().data_received(data)
        if self._target is not None and self._notes.announced is not None:
            self._leave_parser(self._target, self._notes.length or 0)

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
        idle_for = 0.0 if is_busy else self.loop.time() - self.last_data
        if idle_for >= self.timeout_keep_alive:
            self.transport.close()
        else:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive - idle_for, self._close_if_idle)

    # -- The parser ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; its ASGI scope is made only if it goes the slow way."""
        self.url = b""
        self.headers = []
        self._notes.begin()
        self._is_between = False
        self._target = None

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self.url = self.url + url if self.url else url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        name = name.lower()
        self.headers.append((name, value))
        if name in NOTED_HEADERS:
            self._notes.note(name, value)

    def on_headers_complete(self) -> None:
        """Decide which way the request goes."""
        self.expect_100_continue = self._notes.expects
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
        start, self._start = self._start, b""
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
        head = self._notes.head(target, self.headers, len(body))
        if not is_last:
            self._remember(head, start)
        self._admit(head, body, is_last=is_last)

    def _remember(self, head: Head, start: bytes) -> None:
        """Spare the parser this head from now on, if it came in one piece: in `start`, which begins with it."""
        raw, end, _ = start.partition(HEAD_END)
        # An empty line before the verb would be taken for the end of the head.
        is_whole = bool(end) and raw.startswith(b"POST")
        # A client that stamps its requests stamps each anew, so its heads do not come again.
        if is_whole and not head.traceparent and head.length == self._notes.length and not self.expect_100_continue:
            self._share.learn(raw, head)

    def _leave_parser(self, target: Target, length: int) -> None:
        """If a large body is still to come, let it come without the parser; a new one reads what follows."""
        if length - self._size < LARGE_BODY_BYTES:
            return
        head = self._notes.head(target, self.headers, length)
        is_last = not self.parser.should_keep_alive()
        if not is_last:
            self._remember(head, self._start)
        self._start = b""
        self.parser = new_parser(self)
        pieces, self._body = self._body, []
        self._receive(head, memoryview(b"".join(pieces)), is_last=is_last)

    def _receive(self, head: Head, start: memoryview, *, is_last: bool) -> None:
        """Let the rest of a large body come to where it stays."""
        self._target = head.target
        self._is_between = False
        hand_over(self, LargeBody(self, head, start, is_last=is_last))

    def on_large_body(self, head: Head, body: memoryview, *, is_last: bool) -> None:
        """The request is whole: read on as before."""
        hand_over(self, self)
        self._target = None
        self._is_between = True
        self._admit(head, body, is_last=is_last)

    def _admit(self, head: Head, body: Body, *, is_last: bool) -> None:
        """Decode and admit a request, and go on reading."""
        target, fields, _, announced, coding, traceparent, schedule = head
        model, version = target
        slots = self.slots
        slot = Slot(self, head, is_last) if coding is None else CompressingSlot(self, head, is_last)
        slot.received = monotonic()
        if traceparent:
            slot.traceparent = traceparent
        if schedule is not None:
            slot.schedule = schedule
        slots.append(slot)
        headers = self._request_headers
        headers.fields = fields
        try:
            self.door.submit(model, version, body, headers, slot, announced)
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
            head = self._notes.head(target, self.headers, self._size)
            slot = Slot(self, head, not self.parser.should_keep_alive())
            slot.traceparent = head.traceparent
            self.slots.append(slot)
            slot.answer(too_large(self._max_body_bytes))
        elif self._size > DISCARD_FACTOR * self._max_body_bytes:
            self.transport.close()

    def _is_fast(self) -> bool:
        """Whether an inference request may overtake Starlette."""
        parser = self.parser
        if self._notes.is_unusual or parser.get_method() != b"POST" or parser.get_http_version() != "1.1":
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
            self.send(slot, Answer(OK, body, slot.prediction_id, slot.timing))
            return
        slots.clear()
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            share, fields = self._share, self.server_state.default_headers
            head = share.head if share.fields is fields else share.ok_head(fields)
            self.transport.write(ok_answer(head, slot.prediction_id, slot.timing, body))
            if self.flow.read_paused or self.pipeline or self._malformed is not None:
                self._go_on()

    def send(self, slot: Slot, answer: Answer) -> None:
        """Send an answer as soon as its turn comes."""
        slot.sent = answer
        # A client that left while its answer was compressed has none waiting.
        if self.slots and self.slots[0] is slot:
            self._flush()

    def _flush(self) -> None:
        """Send the answers whose turn has come."""
        slots = self.slots
        parts: list[bytes] = []
        is_last = False
        while slots and not is_last and (answer := slots[0].sent) is not None:
            slot = slots.popleft()
            is_last = slot.is_last or (self._is_stopping and self._is_done())
            if answer.is_common and not is_last:
                head = self._share.ok_head(self.server_state.default_headers)
                parts.append(ok_answer(head, answer.prediction_id, answer.timing, answer.body))
            else:
                parts += (head_of(answer, self.server_state.default_headers, is_last=is_last), answer.body)
            self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        write_all(self.transport, parts)
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
