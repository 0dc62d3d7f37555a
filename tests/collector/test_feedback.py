import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.collector.feedback import decode_label, tally
from gateway.protocol.log_codec import MalformedEntry
from gateway.stats.performance import Performance

FIELDS = {
    b"prediction_id": b"abc",
    b"version": b"1",
    b"variant": b"stable",
    b"kind": b"classification",
    b"predicted": b"1",
    b"score": b"0.75",
    b"label": b"1",
    b"predicted_at": b"1700000000.5",
    b"labelled_at": b"1700000100",
}


def test_a_label_has_every_field() -> None:
    label = decode_label(FIELDS)
    assert (label.prediction_id, label.variant, label.score) == ("abc", "stable", 0.75)
    assert label.labelled_at - label.predicted_at == 99.5
    assert decode_label(FIELDS | {b"score": b""}).score is None


@pytest.mark.parametrize(
    "change",
    [
        {b"kind": b"ranking"},
        {b"score": b"high"},
        {b"predicted_at": b"nan"},
        {b"labelled_at": b""},
        {b"variant": b"\xff"},
        {b"kind": b"regression", b"label": b"inf"},
        {b"kind": b"regression", b"label": b"no"},
        {b"kind": b"regression", b"label": b"1e200"},
    ],
)
def test_nonsense_is_refused(change: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedEntry):
        decode_label(FIELDS | change)


@pytest.mark.parametrize("name", FIELDS)
def test_no_field_may_be_missing(name: bytes) -> None:
    with pytest.raises(MalformedEntry, match=name.decode()):
        decode_label({field: value for field, value in FIELDS.items() if field != name})


@given(st.dictionaries(st.binary(max_size=8), st.binary(max_size=8), max_size=4))
def test_junk_is_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedEntry):
        decode_label(fields)


def test_labels_are_summed_by_version_and_variant() -> None:
    changes: list[dict[bytes, bytes]] = [
        {},
        {b"label": b"0"},
        {b"variant": b"canary", b"version": b"2"},
        {b"variant": b"canary", b"version": b"2", b"label": b"01"},
    ]
    assert tally(decode_label(FIELDS | change) for change in changes) == [
        Performance("1", "stable", labelled=2, correct=1),
        Performance("2", "canary", labelled=2, correct=1),
    ]


def test_regressions_sum_their_errors() -> None:
    regression = FIELDS | {b"kind": b"regression", b"predicted": b"2.5"}
    labels = [decode_label(regression | {b"label": label}) for label in (b"2.0", b"4")]
    assert tally(labels) == [Performance("1", "stable", labelled=2, valued=2, absolute_error=2.0, squared_error=2.5)]
