"""`traceparent` is read as W3C Trace Context says, and as OpenTelemetry's own propagator does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.telemetry.trace_context import TraceParent, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(("flags", "is_sampled"), [("01", True), ("00", False), ("03", True), ("02", False)])
def test_ids_and_flags_are_read(flags: str, is_sampled: bool) -> None:
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}")
    assert parent == TraceParent(int(TRACE, 16), int(SPAN, 16), int(flags, 16))
    assert parent.is_sampled is is_sampled


def test_a_later_version_may_say_more() -> None:
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings") is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "no",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[:-1]}-{SPAN}-01",
    ],
)
def test_what_is_malformed_counts_as_absent(value: str) -> None:
    assert parse_traceparent(value) is None


parts = st.tuples(
    st.sampled_from(["00", "01", "ff", "0g"]),
    st.sampled_from([TRACE, "0" * 32, TRACE[1:]]),
    st.sampled_from([SPAN, "0" * 16, SPAN + "0"]),
    st.sampled_from(["00", "01", "ff", "1"]),
    st.sampled_from(["", "-", "-x", " ", "x"]),
)


@given(parts.map(lambda drawn: "-".join(drawn[:4]) + drawn[4]) | st.text(max_size=60))
def test_the_propagator_of_the_sdk_reads_the_same(value: str) -> None:
    context = TraceContextTextMapPropagator().extract({"traceparent": value})
    theirs = get_current_span(context).get_span_context()
    ours = parse_traceparent(value)
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert ours == TraceParent(theirs.trace_id, theirs.span_id, int(theirs.trace_flags))
