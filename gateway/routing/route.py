"""A compiled route, and how it decides. In order:

1. the holdout: a share of the units that always gets the first variant. Its salt is the same for every route and
   experiment, so that these are the same units in all of them;
2. the first match rule that holds;
3. the weights. A sticky unit is hashed with the route's salt to one of 2^53 buckets, which keep their variant for as
   long as the weights allow:

   * two variants: the second owns the buckets from 0 on, so raising its weight never moves one of its units back;
   * three or more: weighted rendezvous hashing: a unit moves only out of a variant that lost weight or into one that
     gained, and between the others nobody does (Schindelhauer & Schomaker, "Weighted distributed hash tables", SPAA
     2005).

A request without the sticky unit gets the fallback if the route has one, else a random bucket, as all requests to a
route without stickiness do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import xxhash

from gateway.routing.attributes import NO_FACTS, Attribute, Condition, RequestFacts
from gateway.types import JsonObject

TOTAL_WEIGHT = 100.0
BUCKETS = 2**53
"""As many as a float tells apart in [0, 1), and JSON in all languages."""
HOLDOUT_SALT = "holdout"
_UNUSED_HASH_BITS = 64 - 53


@dataclass(frozen=True, slots=True)
class Variant:
    """A named share of a route's traffic."""

    name: str
    version: str
    weight: float
    """Per cent of the route's traffic, but for holdout and matches."""


@dataclass(frozen=True, slots=True)
class Match:
    """Requests that meet `condition` go to `variant`, whatever the weights."""

    condition: Condition
    variant: Variant


@dataclass(frozen=True, slots=True)
class Sticky:
    """What stands for whoever asks."""

    attribute: Attribute
    fallback: Variant | None = None
    """For requests without it; None spreads them at random."""


class Decision(NamedTuple):
    """Who answers a request, and why. A person cannot be told from it, but the same buckets are the same person."""

    variant: Variant
    bucket: int | None = None
    """In [0, `BUCKETS`), of the unit under the route's salt; None without a unit."""
    holdout_bucket: int | None = None
    """The same under the salt of all holdouts; None unless the route has a holdout."""
    rule: int | None = None
    """Index of the match rule that decided."""


@dataclass(frozen=True)
class Route:
    """A compiled route document."""

    name: str
    revision: int
    variants: tuple[Variant, ...]
    sticky: Sticky | None
    salt: str
    matches: tuple[Match, ...]
    holdout: float = 0.0
    """Per cent of the units."""
    tenant: Attribute | None = None
    labels: Mapping[str, Variant] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def choose(self, headers: Mapping[str, str], random: float, facts: RequestFacts = NO_FACTS) -> Decision:
        """Who answers a request. `random` is evenly spread over [0, 1), for requests that are not sticky.

        `facts` may be left out unless the route `needs_facts`.
        """
        bucket = holdout_bucket = None
        if self.sticky is not None and (unit := self.sticky.attribute.read(headers, facts)):
            bucket = bucket_of(self.salt, unit)
            if self.holdout:
                holdout_bucket = bucket_of(HOLDOUT_SALT, unit)
                if self.is_held_out(holdout_bucket):
                    return Decision(self.variants[0], bucket, holdout_bucket)
        for rule, match in enumerate(self.matches):
            if match.condition.holds(headers, facts):
                return Decision(match.variant, bucket, holdout_bucket, rule)
        if bucket is not None:
            return Decision(self.place(bucket), bucket, holdout_bucket)
        if self.sticky is not None and self.sticky.fallback is not None:
            return Decision(self.sticky.fallback)
        return Decision(self.place(int(random * BUCKETS)))

    def place(self, bucket: int) -> Variant:
        """Whose a bucket is by the weights alone."""
        variants = self.variants
        if len(variants) == 2:
            return variants[bucket < self._canary_end]
        if len(variants) == 1:
            return variants[0]
        unit = str(bucket)
        return max(variants, key=lambda variant: _rendezvous(variant, unit))

    @cached_property
    def _canary_end(self) -> float:
        return self.variants[1].weight / TOTAL_WEIGHT * BUCKETS

    def is_held_out(self, holdout_bucket: int) -> bool:
        """Whether a bucket under the salt of all holdouts is part of this one."""
        return holdout_bucket < self.holdout / TOTAL_WEIGHT * BUCKETS

    @property
    def is_random(self) -> bool:
        """Whether nothing in a request has a say: nothing is matched and nothing is sticky."""
        return self.sticky is None and not self.matches

    @cached_property
    def needs_facts(self) -> bool:
        """Whether the route looks at more than the headers."""
        looked_at = [match.condition.attribute for match in self.matches]
        looked_at += [self.sticky.attribute] if self.sticky is not None else []
        return not all(attribute.is_in_headers for attribute in looked_at)

    @cached_property
    def bounds(self) -> list[float]:
        """Where in [0, 1) the share of each variant but the last ends, for requests to a random route.

        A number belongs to `variants[bisect_right(bounds, number)]`. From the last share on the bounds are infinite:
        weights add up to 100 but for a rounding error, which must not give a number to a variant without weight.
        """
        last = max(index for index, variant in enumerate(self.variants) if variant.weight > 0)
        sums = accumulate(variant.weight / TOTAL_WEIGHT for variant in self.variants[:-1])
        return [bound if index < last else math.inf for index, bound in enumerate(sums)]

    @cached_property
    def units(self) -> str:
        """Says what buckets stand for: under equal `units` the same caller has the same bucket. Empty if not sticky."""
        return f"{self.sticky.attribute}, salt {self.salt}" if self.sticky is not None else ""

    def labelled(self, label: str) -> Variant | None:
        """The variant of that name, or the one that has the label."""
        return next((variant for variant in self.variants if variant.name == label), self.labels.get(label))

    def document(self) -> JsonObject:
        """The route as the JSON document that compiles to it."""
        document: JsonObject = {
            "name": self.name,
            "revision": self.revision,
            "variants": [{"name": v.name, "version": v.version, "weight": plain(v.weight)} for v in self.variants],
        }
        if self.sticky is not None:
            fallback = self.sticky.fallback
            document["sticky"] = self.sticky.attribute.document() | ({"fallback": fallback.name} if fallback else {})
        if self.salt != self.name:
            document["salt"] = self.salt
        if self.holdout:
            document["holdout"] = plain(self.holdout)
        if self.tenant is not None:
            document["tenant"] = self.tenant.document()
        if self.matches:
            document["match"] = [self._match_document(match) for match in self.matches]
        if self.labels:
            document["labels"] = {label: variant.name for label, variant in self.labels.items()}
        if self.aliases:
            document["aliases"] = list(self.aliases)
        return document

    def _match_document(self, match: Match) -> JsonObject:
        attribute, condition = match.condition.attribute, match.condition
        where = {"tenant": True} if attribute == self.tenant else attribute.document()
        return {**where, **condition.document(), "variant": match.variant.name}


def bucket_of(salt: str, unit: str) -> int:
    """Where a unit falls: evenly spread over [0, `BUCKETS`)."""
    digest: int = xxhash.xxh3_64_intdigest(f"{salt}:{unit}".encode())
    return digest >> _UNUSED_HASH_BITS


def plain(number: float) -> float | int:
    """As a person would write it."""
    return int(number) if number.is_integer() else number


def _rendezvous(variant: Variant, unit: str) -> float:
    if variant.weight == 0.0:
        return -math.inf
    # In (0, 1], where the logarithm exists. The unit is a bucket, and so salted already.
    return math.log((bucket_of(variant.name, unit) + 1) / BUCKETS) / variant.weight
