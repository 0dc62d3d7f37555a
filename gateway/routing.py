"""Which variant answers a request: a pure function over a compiled, immutable route.

A route is a JSON document (`docs/operations.md` describes it). `compile_route` refuses every document that could not be
honoured, naming the path in it; nothing is repaired. `Route.choose` decides by, in order: the first header match, then
the weights. A sticky unit is hashed with the route's salt, so it keeps its variant for as long as the weights allow:

* two variants: the second owns [0, w) of the hash range, so raising w never moves one of its users back;
* three or more: weighted rendezvous hashing: a user moves only out of a variant that lost weight or into one that
  gained, and between the others nobody does (Schindelhauer & Schomaker, "Weighted distributed hash tables", SPAA 2005).

A request without the sticky header, or a route without stickiness, takes a random unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import xxhash

from gateway.errors import InvalidRoute, shown
from gateway.prediction_id import MAX_REVISION
from gateway.types import JsonObject

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")
MAX_VARIANTS = 16
MAX_MATCHES = 64
TOTAL_WEIGHT = 100.0
WEIGHT_TOLERANCE = 1e-6
_HASH_RANGE = 2.0**64


@dataclass(frozen=True, slots=True)
class Variant:
    """A named share of a route's traffic."""

    name: str
    version: str
    weight: float
    """Per cent of the route's traffic."""


@dataclass(frozen=True, slots=True)
class Match:
    """Requests whose `header` equals `value` go to `variant`, whatever the weights."""

    header: str
    value: str
    variant: Variant


@dataclass(frozen=True)
class Route:
    """A compiled route document."""

    name: str
    revision: int
    variants: tuple[Variant, ...]
    sticky_header: str | None
    salt: str
    matches: tuple[Match, ...]

    def choose(self, headers: Mapping[str, str], unit: str) -> Variant:
        """The variant for a request. `unit` stands in where the request has no sticky header; pass it random."""
        for match in self.matches:
            if headers.get(match.header) == match.value:
                return match.variant
        if len(self.variants) == 1:
            return self.variants[0]
        if self.sticky_header is not None:
            unit = headers.get(self.sticky_header, unit)
        if len(self.variants) == 2:
            stable, canary = self.variants
            return canary if _hash(self.salt, unit) * TOTAL_WEIGHT < canary.weight else stable
        return max(self.variants, key=lambda variant: self._rendezvous(variant, unit))

    @property
    def is_random(self) -> bool:
        """Whether nothing in a request has a say: no header is matched and none is sticky."""
        return self.sticky_header is None and not self.matches

    @cached_property
    def bounds(self) -> list[float]:
        """Where in [0, 1) the share of each variant but the last ends, for requests to a random route.

        A number belongs to `variants[bisect_right(bounds, number)]`. From the last share on the bounds are infinite:
        weights add up to 100 but for a rounding error, which must not give a number to a variant without weight.
        """
        last = max(index for index, variant in enumerate(self.variants) if variant.weight > 0)
        sums = accumulate(variant.weight / TOTAL_WEIGHT for variant in self.variants[:-1])
        return [bound if index < last else math.inf for index, bound in enumerate(sums)]

    def _rendezvous(self, variant: Variant, unit: str) -> float:
        if variant.weight == 0.0:
            return -math.inf
        # The hash is in [0, 1); its complement is in (0, 1], where the logarithm exists.
        return math.log(1.0 - _hash(f"{self.salt}:{variant.name}", unit)) / variant.weight

    def document(self) -> JsonObject:
        """The route as the JSON document that compiles to it."""
        document: JsonObject = {
            "name": self.name,
            "revision": self.revision,
            "variants": [{"name": v.name, "version": v.version, "weight": _plain(v.weight)} for v in self.variants],
        }
        if self.sticky_header is not None:
            document["sticky"] = {"header": self.sticky_header}
        if self.salt != self.name:
            document["salt"] = self.salt
        if self.matches:
            document["match"] = [
                {"header": m.header, "equals": m.value, "variant": m.variant.name} for m in self.matches
            ]
        return document


def default_route(model: str, version: str) -> Route:
    """What a model without a document gets: one version takes everything. Revision 0 says that no rule exists."""
    return Route(model, 0, (Variant("default", version, TOTAL_WEIGHT),), None, model, ())


def compile_route(document: Any, *, name: str, versions: Collection[str] | None = None) -> Route:
    """Compile a document for the route `name`.

    `versions` are the loaded versions of the model; None skips that check.
    Raises `InvalidRoute` whose message starts with the path in the document.
    """
    root = _object(document, "document")
    _known_keys(root, "document", {"name", "revision", "variants", "sticky", "salt", "match"})
    if root.get("name") != name:
        raise InvalidRoute(f"name: expected {name!r}, the route's own name, got {shown(root.get('name'))}")
    revision = root.get("revision")
    if isinstance(revision, bool) or not isinstance(revision, int) or not 1 <= revision <= MAX_REVISION:
        raise InvalidRoute(f"revision: expected a whole number from 1 to {MAX_REVISION}, got {shown(revision)}")
    salt = root.get("salt", name)
    if not isinstance(salt, str) or not salt:
        raise InvalidRoute(f"salt: expected a non-empty string, got {shown(salt)}")
    variants = _variants(root.get("variants"), versions)
    return Route(name, revision, variants, _sticky(root.get("sticky")), salt, _matches(root.get("match", []), variants))


def _variants(value: Any, versions: Collection[str] | None) -> tuple[Variant, ...]:
    items = _list(value, "variants", MAX_VARIANTS)
    if not items:
        raise InvalidRoute("variants: expected at least one variant, got none")
    variants = tuple(_variant(item, f"variants[{index}]", versions) for index, item in enumerate(items))
    names = [variant.name for variant in variants]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRoute(f"variants[{index}].name: {name!r} occurs twice; names must differ")
    total = math.fsum(variant.weight for variant in variants)
    if abs(total - TOTAL_WEIGHT) > WEIGHT_TOLERANCE:
        shares = ", ".join(f"{variant.name}={_plain(variant.weight)}" for variant in variants)
        raise InvalidRoute(f"variants: weights are per cent and must add up to 100, got {total:g} ({shares})")
    return variants


def _variant(item: Any, path: str, versions: Collection[str] | None) -> Variant:
    entry = _object(item, path)
    _known_keys(entry, path, {"name", "version", "weight"})
    name, version, weight = entry.get("name"), entry.get("version"), entry.get("weight")
    if not isinstance(name, str) or not NAME.match(name):
        raise InvalidRoute(f"{path}.name: expected letters, digits, '.', '_' or '-' (at most 63), got {shown(name)}")
    if not isinstance(version, str):
        raise InvalidRoute(f'{path}.version: expected a string such as "1", got {shown(version)}')
    if versions is not None and version not in versions:
        known = ", ".join(sorted(versions)) or "none"
        raise InvalidRoute(f"{path}.version: version {shown(version)} is not loaded; loaded versions: {known}")
    # A bool is an int to Python, not to whoever reads the document.
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= TOTAL_WEIGHT:
        raise InvalidRoute(f"{path}.weight: expected a number from 0 to 100, got {shown(weight)}")
    return Variant(name, version, float(weight))


def _sticky(value: Any) -> str | None:
    if value is None:
        return None
    sticky = _object(value, "sticky")
    _known_keys(sticky, "sticky", {"header"})
    return _header(sticky.get("header"), "sticky.header")


def _matches(value: Any, variants: tuple[Variant, ...]) -> tuple[Match, ...]:
    by_name = {variant.name: variant for variant in variants}
    matches = []
    for index, item in enumerate(_list(value, "match", MAX_MATCHES)):
        path = f"match[{index}]"
        entry = _object(item, path)
        _known_keys(entry, path, {"header", "equals", "variant"})
        expected = entry.get("equals")
        if not isinstance(expected, str):
            raise InvalidRoute(f"{path}.equals: expected a string, got {shown(expected)}")
        name = entry.get("variant")
        if not isinstance(name, str) or name not in by_name:
            raise InvalidRoute(f"{path}.variant: no variant {shown(name)}; variants: {', '.join(by_name)}")
        matches.append(Match(_header(entry.get("header"), f"{path}.header"), expected, by_name[name]))
    return tuple(matches)


def _header(value: Any, path: str) -> str:
    if not isinstance(value, str) or not HEADER_NAME.match(value):
        raise InvalidRoute(f'{path}: expected a header name such as "x-user-id", got {shown(value)}')
    return value.lower()


def _object(value: Any, path: str) -> JsonObject:
    if not isinstance(value, dict):
        raise InvalidRoute(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _list(value: Any, path: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRoute(f"{path}: expected a list, got {type(value).__name__}")
    if len(value) > limit:
        raise InvalidRoute(f"{path}: at most {limit} entries, got {len(value)}")
    return value


def _known_keys(entry: JsonObject, path: str, known: set[str]) -> None:
    for key in entry:
        if key not in known:
            raise InvalidRoute(f"{path}: unknown key {shown(key)}; known keys: {', '.join(sorted(known))}")


def _hash(salt: str, unit: str) -> float:
    return xxhash.xxh3_64_intdigest(f"{salt}:{unit}".encode()) / _HASH_RANGE


def _plain(weight: float) -> float | int:
    return int(weight) if weight.is_integer() else weight
