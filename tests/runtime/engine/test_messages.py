from __future__ import annotations

import pytest

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InferenceFailed,
    InvalidRequest,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from gateway.runtime.engine import messages
from gateway.runtime.engine.messages import MAX_MESSAGE_BYTES, Done, Failed, Loaded, Refused, Run, decode, encode
from gateway.types import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("ü", "BYTES", ())), (TensorSpec("y", "INT64", (-1,)),)
)


def test_a_signature_arrives_as_it_was() -> None:
    inputs, outputs = ([list(spec) for spec in specs] for specs in SIGNATURE)
    stamp = ("model.onnx", 1, 2, 3)
    arrived = decode(encode(Loaded(3, 7, inputs, outputs, True, False, 64, 2, [stamp], "digest", 2**20, 0)))
    assert isinstance(arrived, Loaded)
    assert arrived.signature == SIGNATURE
    assert hash(arrived.signature) == hash(SIGNATURE)
    assert arrived.files == (stamp,)
    assert arrived.layout.signature == SIGNATURE
    assert (arrived.number, arrived.handle, arrived.batch_rows, arrived.runs) == (3, 7, 64, 2)


def test_runs_and_answers_arrive_as_they_were() -> None:
    for message in (
        Run(1, 2, 3, 64, [([3, 2], 24)], 128, 64, 1234.5, 3, None),
        Done(1, [([3], 12)], 64, 1234.75, 5, 64),
    ):
        arrived = decode(encode(message))
        assert type(arrived) is type(message)
        assert encode(arrived) == encode(message)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("the model refuses these values"),
        InferenceFailed("the model failed"),
        TooManyRequests("the queue holds 5 rows", retry_after=0.25),
        Unavailable("the model is being unloaded", retry_after=1.0),
        DeadlineExceeded("waited 30 s in the queue", retry_after=1.0),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error: GatewayError) -> None:
    arrived = decode(encode(messages.failed(9, error)))
    assert isinstance(arrived, Failed)
    assert type(arrived.error) is type(error)
    assert (arrived.error.message, arrived.error.retry_after) == (error.message, error.retry_after)


def test_an_error_that_no_run_can_have_counts_as_a_failure() -> None:
    arrived = decode(encode(messages.failed(9, NotFound("no such thing"))))
    assert isinstance(arrived, Failed)
    assert type(arrived.error) is InferenceFailed


def test_what_the_kernel_would_not_keep_in_one_piece_is_not_sent() -> None:
    with pytest.raises(ValueError, match="at most 131072 can be sent"):
        encode(Refused(1, "x" * MAX_MESSAGE_BYTES))


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"5", b'["Rum"]', b'["Run", 1]', b'["Unload", 1, 2]'])
def test_junk_is_told_from_messages(junk: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(junk)
