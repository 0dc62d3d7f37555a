"""Self-describing, signed prediction ids: the `Prediction-Id` header of every answer.

48 base64url characters hold 36 bytes, big-endian:

    kind 1 | route 3 | revision 3 | variant 3 | version 4 | time 4 | summary 4 | nonce 6 | tag 8

`kind` is the format (high four bits) and what the summary holds (low four bits). `route` and `variant` are the first
three bytes of the xxh3 of the name. The tag is keyed BLAKE2b (RFC 7693) over the 28 bytes before it. A label for any
prediction can thus be attributed to its version and variant, and be compared with what was answered, without a look-up;
and nobody without the key can make up an id.
"""

from __future__ import annotations

import math
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from hmac import compare_digest
from itertools import count
from typing import NamedTuple

import numpy as np
import xxhash

from gateway.errors import InvalidRequest
from gateway.types import Array

FORMAT = 1 << 4
ENCODED_LENGTH = 48
TAG_BYTES = 8
MAX_REVISION = 2**24 - 1
MAX_VERSION = 2**32 - 1
NO_SCORE = 0xFFFF
_BODY = struct.Struct(">IIHI")
_PREFIX = struct.Struct(">B3s3s3sI")
_CLASS = struct.Struct(">HH")
_VALUE = struct.Struct(">f")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_TAG_DTYPE = np.dtype([("body", "V28"), ("tag", ">u8")])


class SummaryKind(IntEnum):
    """What the four summary bytes hold."""

    NONE = 0
    """Nothing: the request had several rows, or the model declares no prediction."""
    CLASS = 1
    """Class index (16 bits) and the score in steps of 1/65534 (16 bits, 65535 for none)."""
    VALUE = 2
    """A float32."""


@dataclass(frozen=True, slots=True)
class PredictionId:
    """A decoded, verified id."""

    route_hash: bytes
    revision: int
    variant_hash: bytes
    version: str
    predicted_at: int
    """Unix time in seconds."""
    kind: SummaryKind
    class_index: int | None
    score: float | None
    value: float | None


def name_hash(name: str) -> bytes:
    """Three bytes that stand for a route's or a variant's name."""
    return xxhash.xxh3_64_digest(name.encode())[:3]


def class_summary(index: int, score: float | None) -> int:
    """Summary of a classification; `score` in [0, 1] keeps four decimals, and one that is no number counts as none."""
    packed = NO_SCORE if score is None or math.isnan(score) else round(min(max(score, 0.0), 1.0) * (NO_SCORE - 1))
    return index << 16 | packed


def value_summary(value: float) -> int:
    """Summary of a regression: the float32 nearest to the value."""
    return int.from_bytes(_VALUE.pack(value))


class SignedIds(NamedTuple):
    """The ids of a batch of predictions."""

    texts: list[bytes]
    """ASCII, as they are sent."""
    tags: Array
    """uint64: evenly spread numbers that follow from the ids and that nobody without the key can choose."""


class IdSigner:
    """Makes and checks ids. One per process: `nonce` is three random bytes that no other process shares."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._hasher = blake2b(key=blake2b(key, digest_size=32).digest(), digest_size=TAG_BYTES)
        # Three bytes of the process and three of the counter, as two big-endian fields.
        self._nonce_high, self._nonce_low = int.from_bytes(nonce[:2]), nonce[2] << 24
        self._counter = count()

    @staticmethod
    def prefix(route: str, revision: int, variant: str, version: str, kind: SummaryKind) -> bytes:
        """The part that is the same for every request of a variant; computed once per compiled route."""
        number = int(version) if version.isdigit() else 0
        return _PREFIX.pack(
            FORMAT | kind, name_hash(route), revision.to_bytes(3), name_hash(variant), min(number, MAX_VERSION)
        )

    def sign(self, said: Sequence[tuple[bytes, int]], now: int) -> SignedIds:
        """A new id for each prefix and its summary; `now` is Unix time in whole seconds."""
        pack, keyed, count = _BODY.pack, self._hasher.copy, self._counter
        high, low = self._nonce_high, self._nonce_low
        parts: list[bytes] = []
        for prefix, summary in said:
            body = prefix + pack(now, summary, high, low | (next(count) & 0xFFFFFF))
            hasher = keyed()
            hasher.update(body)
            parts += (body, hasher.digest())
        raw = b"".join(parts)
        # Whole groups of three bytes each, so the text of all ids is the texts of each, one after the other.
        text = b2a_base64(raw, newline=False).translate(_URL_SAFE)
        texts = [text[start : start + ENCODED_LENGTH] for start in range(0, len(text), ENCODED_LENGTH)]
        return SignedIds(texts, np.frombuffer(raw, _TAG_DTYPE)["tag"])

    def verify(self, text: str) -> PredictionId:
        """Decode and check an id. Raises `InvalidRequest` for anything this key did not sign."""
        if len(text) != ENCODED_LENGTH or not text.isascii():
            raise InvalidRequest(f"prediction_id: expected {ENCODED_LENGTH} base64url characters")
        try:
            raw = urlsafe_b64decode(text)
        except ValueError as error:
            raise InvalidRequest("prediction_id: not base64url") from error
        body, tag = raw[:-TAG_BYTES], raw[-TAG_BYTES:]
        # Decoding skips characters outside the alphabet, so a second spelling of the same id would pass for a new one.
        if not compare_digest(self._tag(body), tag) or urlsafe_b64encode(raw).decode("ascii") != text:
            raise InvalidRequest("prediction_id: the signature does not match; it was not issued here")
        return _decode(body)

    def _tag(self, body: bytes) -> bytes:
        hasher = self._hasher.copy()
        hasher.update(body)
        return hasher.digest()


def _decode(body: bytes) -> PredictionId:
    kind_byte, route, revision, variant, version = _PREFIX.unpack_from(body)
    if kind_byte & 0xF0 != FORMAT:
        raise InvalidRequest(f"prediction_id: unknown format {kind_byte >> 4}")
    now, summary, _, _ = _BODY.unpack_from(body, _PREFIX.size)
    kind = SummaryKind(kind_byte & 0x0F)
    index, packed = _CLASS.unpack(summary.to_bytes(4))
    is_class = kind is SummaryKind.CLASS
    return PredictionId(
        route_hash=route,
        revision=int.from_bytes(revision),
        variant_hash=variant,
        version=str(version),
        predicted_at=now,
        kind=kind,
        class_index=index if is_class else None,
        score=packed / (NO_SCORE - 1) if is_class and packed != NO_SCORE else None,
        value=_VALUE.unpack(summary.to_bytes(4))[0] if kind is SummaryKind.VALUE else None,
    )
