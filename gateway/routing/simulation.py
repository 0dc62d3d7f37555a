"""What a route document would do with requests that were answered before: who would move, and what cannot be known.

The log holds no header, no id and no other sign of who asked, but the bucket in which a sticky unit fell. So the
simulation is exact for the units of a route that sticks by the same attribute with the same salt. Of all other requests
it says what is expected of them on average.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gateway.routing.attributes import Condition
from gateway.routing.route import TOTAL_WEIGHT, Route, Variant
from gateway.types import JsonObject

Conditions = Sequence[Condition]
"""Of a route's match rules, in order."""


class _Unknown(Exception):
    """The log does not say who would answer; the message continues "who"."""


class Routed(NamedTuple):
    """A logged request as far as its route is concerned; `units` are empty where nothing in it had a say."""

    variant: str
    """Empty if the request named its version."""
    revision: int
    units: str = ""
    bucket: int | None = None
    holdout_bucket: int | None = None
    rule: int | None = None


class Simulation:
    """Adds up what `route` would have done, request by request, the oldest first."""

    def __init__(self, route: Route, past: Mapping[int, Conditions]) -> None:
        """`past` are the conditions of earlier revisions, as far as they are known."""
        self._route = route
        self._past = past
        self._conditions = [match.condition for match in route.matches]
        self._shares = _shares(route)
        self._by_version = 0
        self._certain = 0
        self._undecided_by: Counter[str] = Counter()
        self._then: Counter[str] = Counter()
        self._now: defaultdict[str, float] = defaultdict(float)
        self._moved = 0.0
        self._units: dict[int, tuple[str, str]] = {}
        self._revisions: set[int] = set()

    def add(self, requests: Iterable[Routed]) -> None:
        """Logged requests."""
        for request in requests:
            self._add(request)

    def document(self) -> JsonObject:
        """Numbers of requests by variant, `then` and `now`, and of units that move.

        Where chance decides, `now` and `moved` hold what is expected. Units are counted where their bucket is known,
        each with its last request.
        """
        moves = Counter(move for move in self._units.values() if move[0] != move[1])
        names = dict.fromkeys((*(variant.name for variant in self._route.variants), *self._then))
        return {
            "requests": self._then.total(),
            "by_version": self._by_version,
            "certain": self._certain,
            "moved": round(self._moved, 1),
            "variants": [{"name": n, "then": self._then[n], "now": round(self._now.get(n, 0.0), 1)} for n in names],
            "units": len(self._units),
            "moves": [{"from": old, "to": new, "units": count} for (old, new), count in moves.most_common()],
            "notes": list(self._notes()),
        }

    def _add(self, request: Routed) -> None:
        if not request.variant:
            self._by_version += 1
            return
        self._revisions.add(request.revision)
        self._then[request.variant] += 1
        try:
            variant = self._answer(request)
        except _Unknown as unknown:
            self._undecided_by[str(unknown)] += 1
            for name, share in self._shares.items():
                self._now[name] += share
            self._moved += 1 - self._shares.get(request.variant, 0.0)
            return
        self._certain += 1
        self._now[variant.name] += 1
        self._moved += variant.name != request.variant
        if request.bucket is not None:
            self._units[request.bucket] = (request.variant, variant.name)

    def _answer(self, request: Routed) -> Variant:
        """As `Route.choose` would decide it. Raises `_Unknown`."""
        if self._is_held_out(request):
            return self._route.variants[0]
        if request.rule is None or not self._conditions:
            return self._by_weight(request)
        past = self._past.get(request.revision, ())
        # Equal as far as the one that decided: an earlier one would have come before it.
        if list(past[: request.rule + 1]) != self._conditions[: request.rule + 1]:
            raise _Unknown("meets a rule is not known: the one that decided has changed, and headers are not logged")
        return self._route.matches[request.rule].variant

    def _is_held_out(self, request: Routed) -> bool:
        if not self._route.holdout:
            return False
        if not self._is_known(request):
            raise _Unknown("is held out is not known: not sticky, or not by the same attribute and salt as then")
        if request.bucket is None:
            return False
        if request.holdout_bucket is None:
            raise _Unknown("is held out is not known: there was no holdout then")
        return self._route.is_held_out(request.holdout_bucket)

    def _by_weight(self, request: Routed) -> Variant:
        route = self._route
        if len(route.variants) == 1:
            return route.variants[0]
        if self._is_known(request) and request.bucket is not None:
            return route.place(request.bucket)
        if self._is_known(request) and route.sticky is not None and route.sticky.fallback is not None:
            return route.sticky.fallback
        raise _Unknown("gets which variant is up to chance: not sticky, or not by the same attribute and salt as then")

    def _is_known(self, request: Routed) -> bool:
        """Whether the request's unit would fall into the same bucket, if it has one."""
        return bool(self._route.units) and request.units == self._route.units

    def _notes(self) -> Iterable[str]:
        for why, count in self._undecided_by.most_common():
            yield f"of {count} requests, who {why}; they are counted by the weights"
        known = [self._past.get(revision, ()) for revision in self._revisions]
        for index, condition in enumerate(self._conditions):
            if not all(condition in past for past in known):
                yield f"match[{index}] is new: the log cannot tell who meets it; it is counted as met by nobody"
        if len(self._revisions) > 1:
            yield f"the log spans revisions {min(self._revisions)} to {max(self._revisions)}"


def _shares(route: Route) -> dict[str, float]:
    """What a unit of which nothing is known may expect."""
    held_out = route.holdout / TOTAL_WEIGHT
    shares = {variant.name: (1 - held_out) * variant.weight / TOTAL_WEIGHT for variant in route.variants}
    shares[route.variants[0].name] += held_out
    return shares
