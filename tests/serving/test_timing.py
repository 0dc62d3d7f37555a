"""Where the time went: the same numbers for the caller, the trace and the log."""

from __future__ import annotations

import pytest

from gateway.runtime.work import Batch
from gateway.serving.call import Call
from gateway.serving.timing import Timing, durations, logged_timing


def call_of(received: float, enqueued: float) -> Call:
    call = Call(lambda _: None)
    call.received, call.enqueued = received, enqueued
    return call


def batch_of(calls: list[Call], rows: int, left: str = "busy") -> Batch:
    return Batch(list(calls), {}, [], rows, 10.5, 10.75, left)


@pytest.mark.parametrize("others", [0, 20])
def test_each_caller_learns_its_own_part_and_what_it_shared(others: int) -> None:
    calls = [call_of(10.0, 10.125), *(call_of(10.25, 10.4375) for _ in range(others))]
    batch = batch_of(calls, 1 + others)
    Timing(batch, calls, clock=lambda: 10.8).tell()
    size = "1 row" if not others else "21 rows"
    shared = f'batch;desc="{size}, busy", run;dur=250.000, encode;dur=50.000'
    first = calls[0].timing.decode().replace("125.0,", "125.000,").replace("375.0,", "375.000,")
    assert first == f"decode;dur=125.000, queue;dur=375.000, {shared}"
    assert all(call.timing == b"decode;dur=187.5, queue;dur=62.5, " + shared.encode() for call in calls[1:])


def test_it_is_told_once() -> None:
    calls = [call_of(10.0, 10.125)]
    batch = batch_of(calls, 1)
    times = iter([10.75, 11.0])
    timing = Timing(batch, calls, clock=lambda: next(times))
    timing.tell()
    told = calls[0].timing
    timing.tell()
    assert calls[0].timing == told
    assert batch.encoded == 10.75


def test_trace_and_log_say_the_same_in_seconds() -> None:
    calls = [call_of(10.0, 10.125), call_of(0.0, 10.25)]
    batch = batch_of(calls, 2, "full")
    Timing(batch, calls, clock=lambda: 10.875).tell()
    assert durations(batch, calls[0]) == {"decode": 0.125, "queue": 0.375, "run": 0.25, "encode": 0.125}
    assert durations(batch, calls[1]) == {"queue": 0.25, "run": 0.25, "encode": 0.125}
    assert logged_timing(batch, calls) == {
        "batch_rows": 2,
        "batch_left": "full",
        "run": 0.25,
        "encode": 0.125,
        "decode": [0.125, 0.0],
        "queue": [0.375, 0.25],
    }


def test_what_nobody_measured_is_left_out() -> None:
    calls = [call_of(0.0, 10.125)]
    batch = batch_of(calls, 1)
    assert durations(batch, calls[0]) == {"queue": 0.375, "run": 0.25}
    assert logged_timing(batch, calls)["encode"] == 0.0
