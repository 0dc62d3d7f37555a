"""The error tree is the API's status table: its classes, statuses and codes are a promise to clients."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError, StartupError, StoreUnavailable, Unavailable

STATUS_TABLE = {
    "internal": 500,
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 412,
    "payload_too_large": 413,
    "invalid_route": 422,
    "precondition_required": 428,
    "queue_full": 429,
    "inference_failed": 500,
    "unsupported": 501,
    "unsupported_encoding": 501,
    "unavailable": 503,
    "store_unavailable": 503,
    "deadline_exceeded": 503,
    "deadline_unreachable": 503,
    "insufficient_memory": 507,
}


def tree(root: type[GatewayError]) -> list[type[GatewayError]]:
    return [root, *(descendant for child in root.__subclasses__() for descendant in tree(child))]


def test_each_class_has_a_code_of_its_own_and_its_promised_status() -> None:
    found = [(error.code, error.status) for error in tree(GatewayError)]
    assert len(found) == len(dict(found))
    assert dict(found) == STATUS_TABLE


@pytest.mark.parametrize("error", tree(GatewayError))
def test_an_error_carries_its_message_and_when_to_come_back(error: type[GatewayError]) -> None:
    raised = error("what was wrong", retry_after=1.5)
    assert (raised.message, str(raised), raised.retry_after) == ("what was wrong", "what was wrong", 1.5)
    assert error("what was wrong").retry_after is None


def test_a_missing_store_is_a_kind_of_unavailable() -> None:
    assert issubclass(StoreUnavailable, Unavailable)


def test_a_start_that_fails_never_reaches_a_client() -> None:
    assert not issubclass(StartupError, GatewayError)
