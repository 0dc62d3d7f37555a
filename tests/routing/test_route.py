"""Who gets which variant: exactly as the document says, and nobody moves without need."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from gateway.routing import BUCKETS, Decision, RequestFacts, Route, compile_route, query_parameters
from gateway.routing.route import bucket_of
from tests.routing.routes import document, match, route_of, variant

USERS = [f"user-{number}" for number in range(100_000)]
FEW_USERS = USERS[:5_000]
RANDOMS = [number / 50 for number in range(50)]


def decided(route: Route, random: float = 0.5, headers: Any = None, query: str = "", **facts: Any) -> Decision:
    return route.choose(headers or {}, random, RequestFacts(query_parameters(query), **facts))


def chosen(route: Route, random: float = 0.5, **facts: Any) -> str:
    return decided(route, random, **facts).variant.name


def spread(route: Route, **facts: Any) -> set[str]:
    """Whom a request may get, by chance."""
    return {chosen(route, random, **facts) for random in RANDOMS}


def placed(route: Route, users: list[str]) -> dict[str, str]:
    return {user: chosen(route, headers={"user": user}) for user in users}


@pytest.mark.parametrize(
    "weights", [(100, 0), (0, 100), (95, 5), (50, 50), (99.9, 0.1), (60, 30, 10), (25, 25, 25, 25), (98, 1, 1, 0)]
)
def test_shares_are_the_weights_within_what_chance_allows(weights: tuple[float, ...]) -> None:
    counts = Counter(placed(route_of(*weights), USERS).values())
    for index, weight in enumerate(weights):
        share = weight / 100
        # Five standard deviations of a binomial count: one draw in 1.7 million falls outside.
        allowed = 5 * math.sqrt(len(USERS) * share * (1 - share))
        assert abs(counts[f"v{index}"] - len(USERS) * share) <= allowed


def test_raising_the_canary_never_moves_one_of_its_users_back() -> None:
    before: set[str] = set()
    for weight in [0, 0.1, 1, 5, 10, 25, 50, 75, 99, 100]:
        canary = {user for user, name in placed(route_of(100 - weight, weight), FEW_USERS).items() if name == "v1"}
        assert before <= canary
        before = canary
    assert before == set(FEW_USERS)


@pytest.mark.parametrize(
    ("old", "new"),
    [((40, 40, 20), (30, 40, 30)), ((80, 20, 0), (70, 20, 10)), ((25, 25, 25, 25), (0, 25, 25, 50))],
)
def test_with_three_or_more_variants_users_only_leave_one_that_lost_weight_or_join_one_that_gained(
    old: tuple[float, ...], new: tuple[float, ...]
) -> None:
    before, after = placed(route_of(*old), FEW_USERS), placed(route_of(*new), FEW_USERS)
    lost = {f"v{index}" for index, (a, b) in enumerate(zip(old, new, strict=True)) if b < a}
    gained = {f"v{index}" for index, (a, b) in enumerate(zip(old, new, strict=True)) if b > a}
    moved = {(before[user], after[user]) for user in before if before[user] != after[user]}
    assert moved
    assert all(source in lost or target in gained for source, target in moved)


def test_a_new_variant_takes_its_share_and_moves_nobody_between_the_others() -> None:
    before, after = placed(route_of(62.5, 37.5, 0), FEW_USERS), placed(route_of(50, 30, 20), FEW_USERS)
    assert {user for user in before if before[user] != after[user]} == {u for u in after if after[u] == "v2"}


def test_a_variant_that_leaves_moves_nobody_but_its_own_users() -> None:
    before, after = placed(route_of(50, 30, 20), FEW_USERS), placed(route_of(62.5, 37.5, 0), FEW_USERS)
    assert {user for user in before if before[user] != after[user]} == {u for u in before if before[u] == "v2"}


@pytest.mark.parametrize("weights", [(50, 50), (40, 30, 30)])
def test_another_salt_shuffles_the_users_anew(weights: tuple[float, ...]) -> None:
    before, after = (placed(route_of(*weights, salt=salt), FEW_USERS) for salt in ("one", "two"))
    stayed = sum(before[user] == after[user] for user in FEW_USERS) / len(FEW_USERS)
    by_chance = sum((weight / 100) ** 2 for weight in weights)
    assert abs(stayed - by_chance) < 0.04


def test_a_million_ids_land_within_binomial_bounds_and_only_the_needed_ones_move() -> None:
    buckets = [bucket_of("m", f"user-{number}") for number in range(1_000_000)]
    ten, twenty = route_of(90, 10), route_of(80, 20)
    before = {bucket for bucket in buckets if ten.place(bucket).name == "v1"}
    after = {bucket for bucket in buckets if twenty.place(bucket).name == "v1"}
    for count, share in ((len(before), 0.1), (len(after), 0.2)):
        assert abs(count - 1e6 * share) <= 5 * math.sqrt(1e6 * share * (1 - share))
    assert before < after


HALVES = {"variants": [variant("stable", 50), variant("canary", 50, "2")]}

STICKY = compile_route(
    document(
        **HALVES,
        sticky={"header": "X-User-Id"},
        match=[match(header="X-Beta", variant="canary"), match(header="x-staff", equals="")],
    ),
    name="m",
)


def test_a_sticky_caller_keeps_its_variant_whatever_chance_says() -> None:
    for user in FEW_USERS[:200]:
        assert len(spread(STICKY, headers={"x-user-id": user})) == 1


@pytest.mark.parametrize("headers", [{}, {"x-user-id": ""}])
def test_a_request_without_the_sticky_header_is_spread_at_random(headers: dict[str, str]) -> None:
    assert spread(STICKY, headers=headers) == {"stable", "canary"}
    assert decided(STICKY, headers=headers).bucket is None


@pytest.mark.parametrize(
    ("sticky", "facts", "without"),
    [
        ({"header": "X-User"}, {"headers": {"x-user": "7"}}, {"headers": {"x-other": "7"}}),
        (
            {"cookie": "Uid"},
            {"headers": {"cookie": "a=b; Uid=7; Uid=8"}},
            {"headers": {"cookie": "uid=7; XUid=7; Uid"}},
        ),
        ({"parameter": "user"}, {"parameters": {"user": "7"}}, {"parameters": {"User": "7"}}),
        ({"parameter": "user"}, {"parameters": {"user": 7}}, {}),
        ({"id": True}, {"id": "7"}, {"id": None}),
        ({"id": True}, {"id": "7"}, {"id": ""}),
    ],
)
def test_a_unit_is_the_same_wherever_it_stands(sticky: Any, facts: Any, without: Any) -> None:
    route = compile_route(document(**HALVES, sticky=sticky), name="m")
    assert decided(route, **facts).bucket == bucket_of("m", "7")
    assert len(spread(route, **facts)) == 1
    assert decided(route, **without).bucket is None
    assert spread(route, **without) == {"stable", "canary"}


@pytest.mark.parametrize(("value", "unit"), [(True, "true"), (1.0, "1.0"), (1, "1"), (2**63, "9223372036854775808")])
def test_a_parameter_that_is_no_string_counts_as_its_json(value: Any, unit: str) -> None:
    route = compile_route(document(**HALVES, sticky={"parameter": "user"}), name="m")
    assert decided(route, parameters={"user": value}).bucket == bucket_of("m", unit)


def test_a_fallback_gets_what_has_no_unit() -> None:
    route = compile_route(document(**HALVES, sticky={"id": True, "fallback": "canary"}), name="m")
    assert spread(route) == {"canary"}
    assert {chosen(route, id=user) for user in FEW_USERS[:100]} == {"stable", "canary"}


def test_the_first_match_decides_before_weights_and_stickiness() -> None:
    for user in FEW_USERS[:50]:
        assert decided(STICKY, headers={"x-beta": "1", "x-staff": "", "x-user-id": user}).rule == 0
        assert chosen(STICKY, headers={"x-beta": "1", "x-user-id": user}) == "canary"
        assert chosen(STICKY, headers={"x-staff": "", "x-user-id": user}) == "stable"


@pytest.mark.parametrize(
    ("rule", "met", "missed"),
    [
        (match(header="X-B"), [{"headers": {"x-b": "1"}}], [{"headers": {"x-b": v}} for v in ("", "11", " 1")] + [{}]),
        (
            match(header="x-b", operator="in", operand=["1", "2"]),
            [{"headers": {"x-b": value}} for value in ("1", "2")],
            [{"headers": {"x-b": "3"}}, {"headers": {"x-c": "1"}}],
        ),
        (
            match(header="x-b", operator="prefix", operand="ab"),
            [{"headers": {"x-b": value}} for value in ("ab", "abc")],
            [{"headers": {"x-b": value}} for value in ("a", "Ab", "xab", "")] + [{}],
        ),
        (match(header="x-b", operator="present", operand=True), [{"headers": {"x-b": ""}}], [{}]),
        (match(header="x-b", operator="present", operand=False), [{}], [{"headers": {"x-b": ""}}]),
        (
            match(query="v"),
            [{"query": query} for query in ("v=1", "a=b&v=1", "v=1&v=2", "%76=%31", "v=1&&=;")],
            [{"query": query} for query in ("", "v", "v=", "v=2&v=1", "V=1", "av=1", "v=1;b", "%")],
        ),
        (match(query="v", operator="present", operand=True), [{"query": "v"}, {"query": "v="}], [{"query": "w"}]),
    ],
)
def test_a_rule_takes_whom_it_names_and_nobody_else(rule: Any, met: list[Any], missed: list[Any]) -> None:
    route = compile_route(document(match=[{**rule, "variant": "canary"}]), name="m")
    assert [decided(route, **facts).rule for facts in met] == [0] * len(met)
    assert [decided(route, **facts).rule for facts in missed] == [None] * len(missed)


def test_a_tenant_is_who_the_route_says() -> None:
    rules = [match(tenant=True, operator="in", operand=["acme", "globex"], variant="canary")]
    route = compile_route(document(tenant={"header": "X-Tenant"}, match=rules), name="m")
    assert chosen(route, headers={"x-tenant": "globex"}) == "canary"
    assert decided(route, headers={"x-tenant": "initech"}).rule is None


def test_a_match_reaches_a_variant_that_has_no_weight() -> None:
    variants = [variant("stable", 100), variant("beta", 0, "2")]
    route = compile_route(document(variants=variants, match=[match(header="x-beta", variant="beta")]), name="m")
    assert chosen(route, headers={"x-beta": "1"}) == "beta"
    assert spread(route) == {"stable"}


@pytest.mark.parametrize("weights", [(50, 50), (0, 100), (20, 30, 50)])
def test_the_holdout_gets_the_first_variant_whatever_happens(weights: tuple[float, ...]) -> None:
    rules = [match(header="x-beta", variant=f"v{len(weights) - 1}")]
    route = route_of(*weights, holdout=5, match=rules)
    held = {user for user in USERS if route.is_held_out(bucket_of("holdout", user))}
    assert abs(len(held) - 5_000) <= 5 * math.sqrt(5_000 * 0.95)
    for user in sorted(held)[:500]:
        assert chosen(route, headers={"user": user, "x-beta": "1"}) == "v0"
    free = [user for user in FEW_USERS if user not in held]
    shares = Counter(chosen(route, headers={"user": user}) for user in free)
    for index, weight in enumerate(weights):
        share = weight / 100
        assert abs(shares[f"v{index}"] - len(free) * share) <= 5 * math.sqrt(len(free) * share * (1 - share))


def test_the_holdout_is_the_same_units_whatever_the_salt_and_the_route() -> None:
    one, other = (route_of(0, 100, salt=salt, holdout=20) for salt in ("one", "two"))
    assert placed(one, FEW_USERS) == placed(other, FEW_USERS)
    wider = route_of(0, 100, holdout=30)
    assert all(chosen(wider, headers={"user": u}) == "v0" for u, name in placed(one, FEW_USERS).items() if name == "v0")


def test_nobody_without_a_unit_is_held_out() -> None:
    assert spread(route_of(0, 100, holdout=99)) == {"v1"}


def test_labels_name_variants_and_variants_name_themselves() -> None:
    route = compile_route(document(labels={"gold": "canary"}), name="m")
    named = {label: route.labelled(label) for label in ("stable", "canary", "gold", "silver")}
    assert {label: found and found.name for label, found in named.items()} == {
        "stable": "stable",
        "canary": "canary",
        "gold": "canary",
        "silver": None,
    }


def test_a_route_says_whether_a_request_has_a_say_and_what_its_buckets_stand_for() -> None:
    plain = compile_route(document(labels={"gold": "canary"}, aliases=["jobs"]), name="m")
    assert (plain.is_random, plain.units) == (True, "")
    sticky = compile_route(document(sticky={"cookie": "uid"}, salt="s"), name="m")
    assert (sticky.is_random, sticky.units) == (False, "cookie uid, salt s")
    assert not compile_route(document(match=[match(query="v")]), name="m").is_random


@pytest.mark.parametrize(
    ("looks", "beyond_headers"),
    [
        ({}, False),
        ({"sticky": {"header": "x"}, "match": [match(header="y")]}, False),
        ({"sticky": {"cookie": "x"}}, False),
        ({"tenant": {"header": "x"}, "match": [match(tenant=True)]}, False),
        ({"sticky": {"id": True}}, True),
        ({"sticky": {"parameter": "x"}}, True),
        ({"sticky": {"header": "x"}, "match": [match(header="y"), match(query="x")]}, True),
    ],
)
def test_a_route_says_whether_headers_are_all_it_needs(looks: dict[str, Any], beyond_headers: bool) -> None:
    assert compile_route(document(**looks), name="m").needs_facts is beyond_headers


@pytest.mark.parametrize("weights", [(0, 100), (100, 0), (0, 0, 100)])
def test_the_first_and_the_last_bucket_belong_to_somebody_with_weight(weights: tuple[float, ...]) -> None:
    route = route_of(*weights)
    for bucket in (0, BUCKETS - 1):
        assert route.place(bucket).weight == 100
