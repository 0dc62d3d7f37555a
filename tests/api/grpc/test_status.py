"""Every error that can reach a client of the gRPC port has a status that clients act on rightly."""

from __future__ import annotations

import grpc
import pytest

from gateway.api.grpc.status import MAX_DETAIL_BYTES, status_of
from gateway.errors import (
    DeadlineExceeded,
    Forbidden,
    GatewayError,
    InferenceFailed,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StoreUnavailable,
    TooManyRequests,
    Unavailable,
    Unsupported,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
        (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
        (NotFound, grpc.StatusCode.NOT_FOUND),
        (PayloadTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (TooManyRequests, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (InferenceFailed, grpc.StatusCode.INTERNAL),
        (GatewayError, grpc.StatusCode.INTERNAL),
        (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
        (Unavailable, grpc.StatusCode.UNAVAILABLE),
        (StoreUnavailable, grpc.StatusCode.UNAVAILABLE),
        (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_the_code_says_what_the_client_should_do(error: type[GatewayError], code: grpc.StatusCode) -> None:
    assert status_of(error("why")) == (code, "why", ())


@pytest.mark.parametrize(("seconds", "header"), [(0.01, "1"), (1.0, "1"), (1.2, "2")])
def test_a_retry_that_makes_sense_says_when_in_whole_seconds(seconds: float, header: str) -> None:
    assert status_of(TooManyRequests("full", retry_after=seconds)).trailing_metadata == (("retry-after", header),)


@pytest.mark.parametrize("character", ["x", "é", "漢", "🙂"])
def test_details_fit_into_a_header_whatever_the_client_sent(character: str) -> None:
    details = status_of(InvalidRequest(character * 100_000)).details
    assert set(details) == {character}
    assert MAX_DETAIL_BYTES - 4 < len(details.encode()) <= MAX_DETAIL_BYTES


def test_half_a_character_does_not_keep_an_error_from_its_client() -> None:
    assert status_of(InvalidRequest("unknown \ud800")).details == "unknown ?"
