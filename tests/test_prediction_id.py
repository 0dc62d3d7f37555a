"""An id says who answered and what; nobody without the key can make one, or spell one in a second way."""

from __future__ import annotations

import base64
import itertools
import math
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.prediction_id import (
    ENCODED_LENGTH,
    MAX_REVISION,
    MAX_VERSION,
    IdSigner,
    SummaryKind,
    class_summary,
    name_hash,
    value_summary,
)

KEY = b"0123456789abcdef"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def signer(key: bytes = KEY, nonce: bytes = b"abc") -> IdSigner:
    return IdSigner(key, nonce)


def one_id(issuer: IdSigner, prefix: bytes, now: int, summary: int) -> str:
    (text,) = issuer.sign([(prefix, summary)], now).texts
    return text.decode()


def an_id() -> str:
    prefix = IdSigner.prefix("employment", 7, "canary", "2", SummaryKind.CLASS)
    return one_id(signer(), prefix, 1_700_000_000, class_summary(1, 0.75))


def refused(text: str, by: IdSigner | None = None) -> str:
    with pytest.raises(InvalidRequest, match="prediction_id: ") as caught:
        (by or signer()).verify(text)
    return caught.value.message


def test_an_id_is_48_characters_that_need_no_escaping() -> None:
    assert len(an_id()) == ENCODED_LENGTH == 48
    assert set(an_id()) <= set(ALPHABET)


@given(
    st.text(min_size=1, max_size=10),
    st.integers(0, MAX_REVISION),
    st.text(max_size=10),
    st.integers(1, MAX_VERSION),
    st.integers(0, 2**32 - 1),
    st.integers(0, 0xFFFE),
    st.none() | st.floats(0, 1),
)
def test_a_class_comes_back(
    route: str, revision: int, variant: str, version: int, now: int, index: int, score: float | None
) -> None:
    prefix = IdSigner.prefix(route, revision, variant, str(version), SummaryKind.CLASS)
    decoded = signer().verify(one_id(signer(), prefix, now, class_summary(index, score)))
    assert decoded.route_hash == name_hash(route)
    assert decoded.variant_hash == name_hash(variant)
    assert (decoded.revision, decoded.version, decoded.predicted_at) == (revision, str(version), now)
    assert (decoded.kind, decoded.class_index, decoded.value) == (SummaryKind.CLASS, index, None)
    if score is None:
        assert decoded.score is None
    else:
        assert decoded.score == pytest.approx(score, abs=1e-4)


@given(st.floats(width=32))
def test_a_value_comes_back_as_the_float32_it_was(value: float) -> None:
    prefix = IdSigner.prefix("m", 1, "v", "1", SummaryKind.VALUE)
    decoded = signer().verify(one_id(signer(), prefix, 0, value_summary(value)))
    assert decoded.value is not None
    assert struct.pack(">f", decoded.value) == struct.pack(">f", value) or math.isnan(value)
    assert (decoded.class_index, decoded.score) == (None, None)


def test_an_answer_without_a_summary_says_so() -> None:
    prefix = IdSigner.prefix("m", 0, "", "1", SummaryKind.NONE)
    decoded = signer().verify(one_id(signer(), prefix, 5, 0))
    assert (decoded.kind, decoded.class_index, decoded.score, decoded.value) == (SummaryKind.NONE, None, None, None)


@pytest.mark.parametrize("score", [-0.5, 1.5, math.inf, -math.inf])
def test_a_score_outside_0_to_1_is_the_nearest_bound(score: float) -> None:
    prefix = IdSigner.prefix("m", 1, "v", "1", SummaryKind.CLASS)
    decoded = signer().verify(one_id(signer(), prefix, 0, class_summary(1, score)))
    assert decoded.score == (1.0 if score > 1 else 0.0)


def test_a_score_that_is_no_number_is_no_score() -> None:
    assert class_summary(3, math.nan) == class_summary(3, None)


def test_every_single_character_is_signed() -> None:
    genuine = an_id()
    for position, other in itertools.product(range(ENCODED_LENGTH), "A-z9"):
        if genuine[position] != other:
            refused(genuine[:position] + other + genuine[position + 1 :])


def test_every_single_bit_is_signed() -> None:
    raw = base64.urlsafe_b64decode(an_id())
    for position, bit in itertools.product(range(len(raw)), range(8)):
        forged = bytearray(raw)
        forged[position] ^= 1 << bit
        refused(base64.urlsafe_b64encode(bytes(forged)).decode())


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text + "=",
        lambda text: text + "====",
        lambda text: " " + text[1:],
        lambda text: text + "\n",
        lambda text: "\n" + text,
        lambda text: text[:-1],
        lambda text: text[:-4] + "====",
        lambda text: "",
        lambda text: "ü" * ENCODED_LENGTH,
        lambda text: "=" * ENCODED_LENGTH,
        lambda text: "!" * ENCODED_LENGTH,
        lambda text: text[:-1] + "!",
        lambda text: text * 2,
    ],
)
def test_other_spellings_are_refused(spell: Callable[[str], str]) -> None:
    refused(spell(an_id()))


def test_the_other_base64_alphabet_is_refused_though_it_means_the_same_bytes() -> None:
    prefix = IdSigner.prefix("m", 1, "v", "1", SummaryKind.NONE)
    issuer = signer()
    text = next(text for text in (one_id(issuer, prefix, 0, 0) for _ in range(1_000)) if "-" in text or "_" in text)
    assert base64.b64decode(text.replace("-", "+").replace("_", "/")) == base64.urlsafe_b64decode(text)
    refused(text.replace("-", "+").replace("_", "/"), issuer)


def test_another_key_refuses() -> None:
    refused(an_id(), signer(key=b"0123456789abcdeF"))


def test_any_process_with_the_key_accepts() -> None:
    assert signer(nonce=b"xyz").verify(an_id()).version == "2"


@given(st.binary(min_size=28, max_size=28), st.binary(min_size=8, max_size=8))
def test_made_up_ids_are_refused(body: bytes, tag: bytes) -> None:
    refused(base64.urlsafe_b64encode(body + tag).decode())


@given(st.text(max_size=60))
def test_arbitrary_text_raises_nothing_but_the_refusal(text: str) -> None:
    refused(text)


def test_ids_do_not_repeat() -> None:
    prefix = IdSigner.prefix("m", 1, "v", "1", SummaryKind.NONE)
    one, other = signer(nonce=b"abc"), signer(nonce=b"abd")
    ids = {one_id(issuer, prefix, 0, 0) for issuer in (one, other) for _ in range(50_000)}
    assert len(ids) == 100_000
