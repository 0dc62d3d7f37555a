"""Whether and when a call is tried again, decided without I/O."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.errors import (
    ConnectionLost,
    InferenceError,
    InvalidResponse,
    ModelNotFound,
    RequestRefused,
    ServerFailed,
    TimedOut,
    TransportError,
    Unavailable,
    Unreachable,
    error_of,
    seconds_of,
)
from gateway.client.retry import BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, RetryBudget

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC).timestamp()


def budget(*, retries: int = 2, max_wait: float = 10.0, is_idempotent: bool = True) -> RetryBudget:
    return RetryBudget(retries, max_wait, is_idempotent=is_idempotent)


class TestWhat:
    @pytest.mark.parametrize("is_idempotent", [True, False])
    @pytest.mark.parametrize("kind", [Unavailable, Unreachable])
    def test_what_was_not_done_is_tried_again_whatever_it_was(
        self, kind: type[InferenceError], is_idempotent: bool
    ) -> None:
        assert budget(is_idempotent=is_idempotent).wait_after(kind("no"), 0.5) is not None

    def test_what_may_have_been_done_is_tried_again_only_where_that_does_no_harm(self) -> None:
        assert budget(is_idempotent=True).wait_after(ConnectionLost("gone"), 0.5) is not None
        assert budget(is_idempotent=False).wait_after(ConnectionLost("gone"), 0.5) is None

    @pytest.mark.parametrize(
        "kind", [RequestRefused, ModelNotFound, ServerFailed, InvalidResponse, TimedOut, TransportError]
    )
    def test_everything_else_is_final(self, kind: type[InferenceError]) -> None:
        assert budget().wait_after(kind("no", retry_after=0.0), 0.5) is None


class TestHowOften:
    @pytest.mark.parametrize("retries", [0, 1, 3])
    def test_as_many_times_as_there_are_retries(self, retries: int) -> None:
        left = budget(retries=retries)
        waits = [left.wait_after(Unavailable("full"), 0.5) for _ in range(5)]
        assert [wait is not None for wait in waits] == [count < retries for count in range(5)]

    def test_all_waits_together_stay_in_the_budget(self) -> None:
        left = budget(retries=9, max_wait=5.0)
        waits = [left.wait_after(Unavailable("full", retry_after=2.0), 0.5) for _ in range(3)]
        assert waits == [2.0, 2.0, None]

    def test_a_retry_after_beyond_the_budget_is_final_at_once(self) -> None:
        assert budget(max_wait=10.0).wait_after(Unavailable("full", retry_after=10.1), 0.5) is None
        assert budget(max_wait=10.0).wait_after(Unavailable("full", retry_after=math.inf), 0.5) is None


class TestWhen:
    def test_retry_after_is_honoured_to_the_second(self) -> None:
        assert budget().wait_after(Unavailable("full", retry_after=3.0), 0.9) == 3.0
        assert budget().wait_after(Unavailable("full", retry_after=0.0), 0.9) == 0.0

    def test_without_it_the_waits_double_up_to_a_limit(self) -> None:
        left = budget(retries=8, max_wait=100.0)
        waits = [left.wait_after(Unreachable("no"), 1.0) for _ in range(8)]
        assert waits[:3] == [BACKOFF_SECONDS, 2 * BACKOFF_SECONDS, 4 * BACKOFF_SECONDS]
        assert waits[5:] == [MAX_BACKOFF_SECONDS] * 3

    @given(st.floats(0.0, 1.0, exclude_max=True))
    def test_jitter_takes_any_part_of_the_wait(self, jitter: float) -> None:
        assert budget().wait_after(Unreachable("no"), jitter) == jitter * BACKOFF_SECONDS


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("0", 0.0),
            ("120", 120.0),
            (" 7 ", 7.0),
            ("Tue, 24 Nov 2026 12:01:30 GMT", 90.0),
            ("Tuesday, 24-Nov-26 12:01:30 GMT", 90.0),
            ("Tue Nov 24 12:01:30 2026", 90.0),
            ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ],
    )
    def test_seconds_and_all_three_formats_of_a_date(self, header: str, seconds: float) -> None:
        assert seconds_of(header, NOW) == seconds

    @pytest.mark.parametrize("header", [None, "", "-1", "1.5", "soon", "²", "24 Nov", "Tue, 99 Nov 2026 12:01:30 GMT"])
    def test_neither_is_no_header(self, header: str | None) -> None:
        assert seconds_of(header, NOW) is None

    @given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ Nov \d+ \d+:\d+:\d+ [+-]\d+"))
    def test_no_header_can_raise(self, header: str) -> None:
        seconds = seconds_of(header, NOW)
        assert seconds is None or seconds >= 0.0


def answer(status: int, content: bytes = b"", **headers: str) -> httpx.Response:
    request = httpx.Request("POST", "http://gateway/v2/models/m/infer")
    return httpx.Response(status, headers=headers, content=content, request=request)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, RequestRefused),
            (404, ModelNotFound),
            (413, RequestRefused),
            (429, Unavailable),
            (500, ServerFailed),
            (501, ServerFailed),
            (503, Unavailable),
            (204, ServerFailed),
            (307, ServerFailed),
        ],
    )
    def test_each_status_has_its_class_and_the_servers_words(self, status: int, kind: type[InferenceError]) -> None:
        error = error_of(answer(status, b'{"error": "what was wrong"}', **{"Retry-After": "4"}), NOW)
        assert (type(error), error.status, error.message, error.retry_after) == (kind, status, "what was wrong", 4.0)
        assert str(error) == "what was wrong"

    @pytest.mark.parametrize("content", [b"", b"<html>Bad Gateway</html>", b"[]", b'{"error": 1}', b'{"error": ""}'])
    def test_an_answer_without_words_of_its_own_is_shown(self, content: bytes) -> None:
        error = error_of(answer(502, content), NOW)
        assert error.message.startswith("http://gateway/v2/models/m/infer: 502 Bad Gateway, ")
        assert error.retry_after is None
