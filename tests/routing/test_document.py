"""Who gets which version: refused with a path or honoured exactly, and nobody moves without need."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRoute
from gateway.prediction_id import MAX_REVISION
from gateway.routing import MAX_MATCHES, MAX_VARIANTS, Route, compile_route, default_route

VERSIONS = ["1", "2", "3"]
USERS = [f"user-{number}" for number in range(100_000)]
FEW_USERS = USERS[:5_000]


def variant(name: str, weight: Any, version: Any = "1", **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "weight": weight, **more}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "revision": 7,
        "variants": [variant("stable", 95), variant("canary", 5, "2")],
        **changes,
    }


def route_of(*weights: float, salt: str = "m") -> Route:
    variants = [variant(f"v{index}", weight) for index, weight in enumerate(weights)]
    return compile_route(document(variants=variants, salt=salt), name="m")


def placed(route: Route, users: list[str]) -> dict[str, str]:
    return {user: route.choose({}, user).name for user in users}


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ("no object", "document: expected an object, got str"),
        ([], "document: expected an object, got list"),
        (None, "document: expected an object"),
        (document(shadow=[]), "document: unknown key 'shadow'"),
        (document(name="other"), "name: expected 'm'"),
        (document(name=None), "name: expected 'm'"),
        (document(revision=0), "revision: expected a whole number"),
        (document(revision=-1), "revision: expected a whole number"),
        (document(revision=1.0), "revision: expected a whole number"),
        (document(revision=True), "revision: expected a whole number"),
        (document(revision="7"), "revision: expected a whole number"),
        (document(revision=None), "revision: expected a whole number"),
        (document(revision=MAX_REVISION + 1), "revision: expected a whole number"),
        (document(salt=""), "salt: expected a non-empty string"),
        (document(salt=7), "salt: expected a non-empty string"),
        (document(variants={}), "variants: expected a list"),
        (document(variants=None), "variants: expected a list"),
        (document(variants=[]), "variants: expected at least one"),
        (document(variants=[variant(f"v{i}", 0) for i in range(MAX_VARIANTS + 1)]), "variants: at most 16 entries"),
        (document(variants=["stable"]), "variants[0]: expected an object"),
        (document(variants=[variant("a", 100, extra=1)]), "variants[0]: unknown key 'extra'"),
        (document(variants=[variant("", 100)]), "variants[0].name: "),
        (document(variants=[variant("a b", 100)]), "variants[0].name: "),
        (document(variants=[variant("a\n", 100)]), "variants[0].name: "),
        (document(variants=[variant(".a", 100)]), "variants[0].name: "),
        (document(variants=[variant("a" * 64, 100)]), "variants[0].name: "),
        (document(variants=[variant("a", 50), variant("a", 50)]), "variants[1].name: 'a' occurs twice"),
        (document(variants=[variant("a", 50), variant("b", 50, 2)]), "variants[1].version: expected a string"),
        (
            document(variants=[variant("a", 100, "9")]),
            "variants[0].version: version '9' is not loaded; loaded versions: 1",
        ),
        (
            document(variants=[variant("a", 0), variant("b", 100, "9")]),
            "variants[1].version: version '9' is not loaded",
        ),
        (
            document(variants=[variant("a", 101), variant("b", -1)]),
            "variants[0].weight: expected a number from 0 to 100",
        ),
        (
            document(variants=[variant("a", 100), variant("b", -1)]),
            "variants[1].weight: expected a number from 0 to 100",
        ),
        (document(variants=[variant("a", "100")]), "variants[0].weight: expected a number"),
        (document(variants=[variant("a", True), variant("b", 99)]), "variants[0].weight: expected a number"),
        (document(variants=[variant("a", math.nan)]), "variants[0].weight: expected a number"),
        (document(variants=[variant("a", math.inf)]), "variants[0].weight: expected a number"),
        (document(variants=[variant("a", None)]), "variants[0].weight: expected a number"),
        (
            document(variants=[variant("a", 99.99), variant("b", 0)]),
            "variants: weights are per cent and must add up to 100",
        ),
        (document(variants=[variant("a", 60), variant("b", 60)]), "variants: weights are per cent"),
        (document(variants=[variant("a", 0)]), "variants: weights are per cent"),
        (document(sticky="x-user-id"), "sticky: expected an object"),
        (document(sticky={}), "sticky.header: expected a header name"),
        (document(sticky={"header": "x user"}), "sticky.header: expected a header name"),
        (document(sticky={"header": "x-user", "cookie": "c"}), "sticky: unknown key 'cookie'"),
        (document(match={}), "match: expected a list"),
        (document(match=None), "match: expected a list"),
        (document(match=["x"]), "match[0]: expected an object"),
        (document(match=[{"header": "x", "equals": "1", "variant": "stable", "y": 1}]), "match[0]: unknown key 'y'"),
        (document(match=[{"header": "x:", "equals": "1", "variant": "stable"}]), "match[0].header: "),
        (document(match=[{"header": "x", "equals": 1, "variant": "stable"}]), "match[0].equals: expected a string"),
        (document(match=[{"header": "x", "equals": "1", "variant": "beta"}]), "match[0].variant: no variant 'beta'"),
        (document(match=[{"header": "x", "equals": "1"}]), "match[0].variant: "),
        (
            document(match=[{"header": "x", "equals": "1", "variant": "stable"}] * (MAX_MATCHES + 1)),
            "match: at most 64 entries",
        ),
    ],
)
def test_a_document_that_cannot_be_honoured_is_refused_with_its_path(changed: Any, path: str) -> None:
    with pytest.raises(InvalidRoute) as caught:
        compile_route(changed, name="m", versions=VERSIONS)
    assert caught.value.message.startswith(path)


def test_versions_are_checked_only_against_what_is_loaded() -> None:
    assert compile_route(document(variants=[variant("a", 100, "9")]), name="m").variants[0].version == "9"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(["name", "revision", "variants", "sticky", "salt", "match"]), json_values)
def test_any_value_anywhere_is_honoured_or_refused(key: str, value: Any) -> None:
    try:
        route = compile_route(document(**{key: value}), name="m", versions=VERSIONS)
    except InvalidRoute:
        return
    assert route.choose({}, "u").name in {"stable", "canary"}


@pytest.mark.parametrize(
    "place",
    [
        lambda deep: deep,
        lambda deep: document(name=deep),
        lambda deep: document(revision=deep),
        lambda deep: document(salt=deep),
        lambda deep: document(sticky={"header": deep}),
        lambda deep: document(variants=[variant(deep, 100)]),
        lambda deep: document(variants=[variant("a", deep)]),
        lambda deep: document(variants=[variant("a", 100, deep)]),
        lambda deep: document(match=[{"header": "x", "equals": deep, "variant": "stable"}]),
        lambda deep: document(match=[{"header": "x", "equals": "1", "variant": deep}]),
    ],
)
def test_a_document_edited_into_a_deep_nest_is_refused_like_any_other(place: Any) -> None:
    deep = orjson.loads(b"[" * 1_000 + b"]" * 1_000)
    with pytest.raises(InvalidRoute) as caught:
        compile_route(place(deep), name="m")
    assert len(caught.value.message) < 500


def test_a_long_value_does_not_fill_the_log() -> None:
    with pytest.raises(InvalidRoute) as caught:
        compile_route(document(salt=["x" * 10_000] * 100), name="m")
    assert len(caught.value.message) < 500


def test_a_model_without_a_document_sends_everything_to_one_version() -> None:
    route = default_route("m", "3")
    assert (route.revision, route.choose({"x-user-id": "u"}, "r").version) == (0, "3")


@pytest.mark.parametrize(
    "document_",
    [
        document(),
        document(variants=[variant("only", 100)]),
        document(variants=[variant("a", 33.3), variant("b", 33.3, "2"), variant("c", 33.4, "3")]),
        document(sticky={"header": "X-User-Id"}, salt="2026-experiment"),
        document(match=[{"header": "X-Beta", "equals": "1", "variant": "canary"}]),
        document(salt="m", match=[]),
    ],
)
def test_a_compiled_route_writes_the_document_that_compiles_to_it(document_: dict[str, Any]) -> None:
    route = compile_route(document_, name="m", versions=VERSIONS)
    again = orjson.loads(orjson.dumps(route.document()))
    assert compile_route(again, name="m", versions=VERSIONS) == route


@given(
    st.lists(st.integers(0, 1_000), min_size=1, max_size=6).filter(any),
    st.none() | st.just("X-User"),
    st.text(min_size=1, max_size=5),
)
def test_documents_round_trip_whatever_the_weights(parts: list[int], sticky: str | None, salt: str) -> None:
    total = sum(parts)
    variants = [variant(f"v{index}", 100.0 * part / total) for index, part in enumerate(parts)]
    extra = {"sticky": {"header": sticky}} if sticky else {}
    route = compile_route(document(variants=variants, salt=salt, **extra), name="m")
    assert compile_route(orjson.loads(orjson.dumps(route.document())), name="m") == route


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


STICKY = document(
    variants=[variant("stable", 50), variant("canary", 50, "2")],
    sticky={"header": "X-User-Id"},
    match=[
        {"header": "X-Beta", "equals": "1", "variant": "canary"},
        {"header": "x-beta", "equals": "1", "variant": "stable"},
        {"header": "x-staff", "equals": "", "variant": "stable"},
    ],
)


def test_a_sticky_caller_keeps_its_variant_whatever_the_random_unit() -> None:
    route = compile_route(STICKY, name="m")
    for user in FEW_USERS[:200]:
        assert len({route.choose({"x-user-id": user}, unit) for unit in USERS[:20]}) == 1


def test_a_request_without_the_sticky_header_takes_the_random_unit() -> None:
    route = compile_route(STICKY, name="m")
    assert {route.choose({}, unit).name for unit in USERS[:50]} == {"stable", "canary"}


def test_the_sticky_unit_counts_as_the_same_person_as_a_random_unit_of_that_name() -> None:
    route = compile_route(STICKY, name="m")
    assert all(route.choose({"x-user-id": user}, "") == route.choose({}, user) for user in FEW_USERS[:200])


def test_the_first_match_decides_before_weights_and_stickiness() -> None:
    route = compile_route(STICKY, name="m")
    for user in FEW_USERS[:50]:
        assert route.choose({"x-beta": "1", "x-user-id": user}, "").name == "canary"
        assert route.choose({"x-staff": "", "x-user-id": user}, "").name == "stable"


def test_a_match_needs_the_whole_value() -> None:
    route = compile_route(STICKY, name="m")
    for value in ["", "11", " 1", "0"]:
        assert {route.choose({"x-beta": value}, unit).name for unit in USERS[:50]} == {"stable", "canary"}


def test_a_match_reaches_a_variant_that_has_no_weight() -> None:
    route = compile_route(
        document(
            variants=[variant("stable", 100), variant("beta", 0, "2")],
            match=[{"header": "x-beta", "equals": "1", "variant": "beta"}],
        ),
        name="m",
    )
    assert route.choose({"x-beta": "1"}, "u").name == "beta"
    assert {route.choose({}, unit).name for unit in FEW_USERS} == {"stable"}
