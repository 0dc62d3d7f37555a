"""What the gateway logs, the collector reads; and whatever else stands in the stream is set aside, never a crash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.protocol.log_codec import (
    DATA,
    META,
    LogEntry,
    LoggedRequest,
    MalformedEntry,
    decode,
    decode_requests,
    encode,
)
from gateway.types import Array, ModelKey, string_array


def entry(inputs: dict[str, Array], outputs: dict[str, Array], *rows: int) -> LogEntry:
    requests = tuple(LoggedRequest(f"id-{i}", "canary", 7, count) for i, count in enumerate(rows))
    return LogEntry(ModelKey("m", "2"), 1_700_000_000.25, 0.5, requests, inputs, outputs)


def small_entry() -> LogEntry:
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "s": string_array(["a", "ü", ""], (3, 1))}
    return entry(inputs, {"y": np.array([1, 2, 3], np.int64)}, 1, 2)


def assert_same(left: LogEntry, right: LogEntry) -> None:
    assert (left.key, left.logged_at, left.rate, left.requests) == (
        right.key,
        right.logged_at,
        right.rate,
        right.requests,
    )
    for ours, theirs in ((left.inputs, right.inputs), (left.outputs, right.outputs)):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
            np.testing.assert_array_equal(array, theirs[name])


def test_an_entry_comes_back_as_it_was() -> None:
    decoded = decode(encode(small_entry()))
    assert_same(decoded, small_entry())
    assert decoded.rows == 3


def test_traced_requests_keep_their_trace_and_an_entry_without_any_is_as_it_ever_was() -> None:
    plain = small_entry()
    traced = replace(plain, requests=(plain.requests[0], replace(plain.requests[1], trace_id="ab" * 16)))
    assert_same(decode(encode(traced)), traced)
    meta, before = orjson.loads(encode(traced)[META]), orjson.loads(encode(plain)[META])
    # What a collector that knows nothing of traces reads.
    assert {name: value for name, value in meta.items() if name != "traces"} == before
    assert meta["traces"] == ["", "ab" * 16]


def routed(entry: LogEntry, *buckets: int | None, units: tuple[str, ...] = ("id, salt m",) * 2) -> LogEntry:
    requests = (
        replace(request, units=unit, bucket=bucket, holdout_bucket=bucket, rule=bucket)
        for request, unit, bucket in zip(entry.requests, units, buckets, strict=True)
    )
    return replace(entry, requests=tuple(requests))


def test_routed_requests_keep_their_buckets_and_an_entry_without_any_is_as_it_ever_was() -> None:
    original = routed(small_entry(), 2**53 - 1, None)
    assert_same(decode(encode(original)), original)
    meta, before = orjson.loads(encode(original)[META]), orjson.loads(encode(small_entry())[META])
    # What a collector that knows nothing of routing reads.
    assert {name: value for name, value in meta.items() if name != "routing"} == before
    assert decode_requests(encode(original)[META]) == (original.logged_at, original.requests)


def test_of_a_batch_that_spans_an_edit_only_the_later_buckets_are_kept() -> None:
    decoded = decode(encode(routed(small_entry(), 5, 6, units=("id, salt old", "id, salt new"))))
    assert [(one.units, one.bucket) for one in decoded.requests] == [("id, salt new", None), ("id, salt new", 6)]


def test_a_last_request_that_named_its_version_costs_the_others_nothing() -> None:
    decoded = decode(encode(routed(small_entry(), 5, None, units=("id, salt m", ""))))
    assert [one.bucket for one in decoded.requests] == [5, None]


@pytest.mark.parametrize("meta", [b"", b"7", b"{}", b'{"logged_at":1,"requests":[[]]}'])
def test_requests_alone_are_read_as_carefully(meta: bytes) -> None:
    with pytest.raises(MalformedEntry):
        decode_requests(meta)


def columns(rows: int) -> st.SearchStrategy[dict[str, Array]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, max_side=3).map(lambda rest: (rows, *rest))
    numeric = st.sampled_from([dtype for name, dtype in NUMPY_DTYPES.items() if name != BYTES])
    arrays = numeric.flatmap(lambda dtype: hnp.arrays(dtype, shapes)) | hnp.arrays(
        np.dtype(object), shapes, elements=st.text(max_size=4)
    )
    return st.dictionaries(st.text(max_size=5), arrays, max_size=3)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3).flatmap(
        lambda rows: st.tuples(st.just(rows), columns(sum(rows)), columns(sum(rows)))
    )
)
def test_every_datatype_and_shape_survives_with_its_bits(drawn: tuple[list[int], Any, Any]) -> None:
    rows, inputs, outputs = drawn
    original = entry(inputs, outputs, *rows)
    assert_same(decode(encode(original)), original)


def test_columns_that_are_not_contiguous_are_written_row_by_row() -> None:
    transposed = np.arange(6, dtype=np.float64).reshape(2, 3).T
    assert decode(encode(entry({"x": transposed}, {}, 3))).inputs["x"].tolist() == transposed.tolist()


def test_the_meta_field_is_json_for_people() -> None:
    meta = orjson.loads(encode(small_entry())[META])
    assert (meta["model"], meta["version"], meta["rate"]) == ("m", "2", 0.5)
    assert meta["requests"] == [["id-0", "canary", 7, 1], ["id-1", "canary", 7, 2]]


def changed(**changes: Any) -> dict[bytes, bytes]:
    fields = encode(small_entry())
    return {**fields, META: orjson.dumps({**orjson.loads(fields[META]), **changes})}


def column(**changes: Any) -> dict[bytes, bytes]:
    meta = orjson.loads(encode(small_entry())[META])
    return changed(columns=[{**meta["columns"][0], **changes}, *meta["columns"][1:]])


def one_column(**fields: Any) -> dict[bytes, bytes]:
    data = b"" if "values" in fields else b"\x01"
    meta = {"requests": [["id", "v", 1, 1]], "columns": [{"kind": "input", "name": "x", **fields}]}
    return {**changed(**meta), DATA: data}


def test_one_column_is_what_an_entry_may_hold() -> None:
    assert decode(one_column(shape=[1], datatype="UINT8")).inputs["x"].tolist() == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {META: b"{}"},
        {DATA: b""},
        {META: b"not json", DATA: b""},
        {META: b"[]", DATA: b""},
        changed(schema=2),
        changed(schema=None),
        changed(requests=[]),
        changed(requests=[["id", "v", 1]]),
        changed(requests=[["id", "v", "x", 3]]),
        changed(requests=None),
        changed(traces=[]),
        changed(traces=["a"]),
        changed(traces=["a", "b", "c"]),
        changed(traces=7),
        changed(routing=7),
        changed(routing={"buckets": [1]}),
        changed(routing={"buckets": ["a", "b"]}),
        changed(routing={"rules": None}),
        changed(columns={}),
        changed(columns=[{}]),
        changed(rate="often"),
        changed(logged_at=None),
        column(shape=[]),
        column(shape=[2, 2]),
        column(shape=[-1, 2]),
        column(shape=[-3, -2]),
        column(shape=[2**40, 2**40]),
        column(shape=[2**62, 4]),
        column(shape="32"),
        column(datatype="FP128"),
        column(datatype="FP64"),
        column(kind="neither"),
        column(name=["x"]),
        column(datatype="BYTES", values=["a"]),
        column(datatype="BYTES", values=None),
        column(datatype="BYTES", values=[1, 2, 3, 4, 5, 6]),
        one_column(shape=[], datatype="UINT8"),
        one_column(shape=[], datatype="BYTES", values=["a"]),
        one_column(shape=[-1], datatype="UINT8"),
        one_column(shape=[True], datatype="UINT8"),
        {**encode(small_entry()), DATA: encode(small_entry())[DATA][:-1]},
        {**encode(small_entry()), DATA: encode(small_entry())[DATA] + b"\0"},
        {**encode(small_entry()), DATA: b""},
    ],
)
def test_junk_is_a_malformed_entry(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedEntry):
        decode(fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
META_KEYS = sorted({*orjson.loads(encode(small_entry())[META]), "traces"})


@given(st.dictionaries(st.sampled_from([META, DATA, b"other"]), st.binary(max_size=40)))
def test_arbitrary_bytes_raise_nothing_but_malformed_entry(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedEntry):
        decode(fields)


@given(st.sampled_from(META_KEYS), json_values)
def test_any_value_anywhere_in_meta_decodes_or_is_malformed(key: str, value: Any) -> None:
    try:
        decode(changed(**{key: value}))
    except MalformedEntry:
        return


@given(st.sampled_from(["kind", "name", "datatype", "shape", "values"]), json_values)
def test_any_value_anywhere_in_a_column_decodes_or_is_malformed(key: str, value: Any) -> None:
    try:
        decoded = decode(column(**{key: value}))
    except MalformedEntry:
        return
    assert all(array.shape[0] == decoded.rows for array in (*decoded.inputs.values(), *decoded.outputs.values()))
