"""A document is refused with a path or honoured exactly."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRoute
from gateway.prediction_id import MAX_REVISION
from gateway.routing import compile_route, default_route
from gateway.routing.document import (
    MAX_ALIASES,
    MAX_CHARACTERS,
    MAX_LABELS,
    MAX_MATCHES,
    MAX_VALUES,
    MAX_VARIANTS,
    SECTIONS,
)
from tests.routing.routes import document, match, variant

VERSIONS = ["1", "2", "3"]
TAKEN = {"digits": "a model", "work": "an alias of route 'n'"}


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
        (document(sticky={}), "sticky: expected one of header, cookie, parameter, id, got none"),
        (document(sticky={"fallback": "stable"}), "sticky: expected one of header, cookie, parameter, id, got none"),
        (
            document(sticky={"header": "x-user", "cookie": "c"}),
            "sticky: expected one of header, cookie, parameter, id,",
        ),
        (document(sticky={"query": "user"}), "sticky: unknown key 'query'"),
        (document(sticky={"header": "x user"}), "sticky.header: expected a header name"),
        (document(sticky={"cookie": "a;b"}), "sticky.cookie: expected a cookie name"),
        (document(sticky={"parameter": ""}), "sticky.parameter: expected the name of a parameter"),
        (
            document(sticky={"parameter": "binary_data_output"}),
            "sticky.parameter: 'binary_data_output' means something",
        ),
        (document(sticky={"parameter": "triton_x"}), "sticky.parameter: 'triton_x' means something else"),
        (document(sticky={"id": "x"}), "sticky.id: expected true"),
        (document(sticky={"header": "x", "fallback": "beta"}), "sticky.fallback: no variant 'beta'"),
        (document(sticky={"header": "x", "fallback": 1}), "sticky.fallback: no variant 1"),
        (document(salt="x" * (MAX_CHARACTERS + 1)), "salt: at most 256 characters"),
        (document(holdout=5), "holdout: needs `sticky`"),
        *(
            (document(sticky={"id": True}, holdout=junk), "holdout: expected a number of per cent")
            for junk in (-1, 100, True, False, "5", None, math.nan, math.inf)
        ),
        (document(tenant="x-tenant"), "tenant: expected an object"),
        (document(tenant={"header": "x-tenant"}), "tenant: no match asks for it"),
        (document(tenant={"query": "t"}, match=[match(tenant=True)]), "tenant: unknown key 'query'"),
        (document(tenant={"header": "x tenant"}, match=[match(tenant=True)]), "tenant.header: "),
        (document(match=[match(tenant=True)]), "match[0].tenant: the route does not say who that is"),
        (document(tenant={"header": "t"}, match=[match(tenant="acme")]), "match[0].tenant: expected true"),
        (document(match={}), "match: expected a list"),
        (document(match=None), "match: expected a list"),
        (document(match=["x"]), "match[0]: expected an object"),
        (document(match=[match(header="x", y=1)]), "match[0]: unknown key 'y'"),
        (document(match=[match()]), "match[0]: expected one of header, query, tenant, got none"),
        (
            document(match=[match(header="x", query="y")]),
            "match[0]: expected one of header, query, tenant, got header and",
        ),
        (document(match=[match(header="x:")]), "match[0].header: expected a header name"),
        (document(match=[match(query="a=b")]), "match[0].query: expected the name of a parameter"),
        (document(match=[match(query=7)]), "match[0].query: expected the name of a parameter"),
        (
            document(match=[{"header": "x", "variant": "stable"}]),
            "match[0]: expected one of equals, in, prefix, present",
        ),
        (
            document(match=[match(header="x", prefix="y")]),
            "match[0]: expected one of equals, in, prefix, present, got equ",
        ),
        (document(match=[match(header="x", equals=1)]), "match[0].equals: expected a string"),
        (document(match=[match(header="x", equals="1" * 257)]), "match[0].equals: at most 256 characters"),
        (document(match=[match(header="x", operator="in", operand="a")]), "match[0].in: expected a list"),
        (document(match=[match(header="x", operator="in", operand=[])]), "match[0].in: expected at least one string"),
        (document(match=[match(header="x", operator="in", operand=["a", 1])]), "match[0].in[1]: expected a string"),
        (document(match=[match(header="x", operator="in", operand=["a", "a"])]), "match[0].in[1]: 'a' occurs twice"),
        (
            document(match=[match(header="x", operator="in", operand=[str(i) for i in range(MAX_VALUES + 1)])]),
            "match[0].in: at most 100 entries",
        ),
        (document(match=[match(header="x", operator="prefix", operand="")]), "match[0].prefix: expected a non-empty"),
        (
            document(match=[match(header="x", operator="present", operand=1)]),
            "match[0].present: expected true or false",
        ),
        (document(match=[match(header="x", variant="beta")]), "match[0].variant: no variant 'beta'"),
        (document(match=[{"header": "x", "equals": "1"}]), "match[0].variant: "),
        (document(match=[match(header=f"x{i}") for i in range(MAX_MATCHES + 1)]), "match: at most 64 entries"),
        (document(labels=[]), "labels: expected an object"),
        (document(labels={"a b": "stable"}), "labels: expected letters"),
        (document(labels={"gold": "beta"}), "labels.gold: no variant 'beta'"),
        (document(labels={"gold": ["stable"]}), "labels.gold: no variant ['stable']"),
        (document(labels={"canary": "stable"}), "labels.canary: is the name of a variant"),
        (document(labels={f"l{i}": "stable" for i in range(MAX_LABELS + 1)}), "labels: at most 16 entries"),
        (document(aliases="jobs"), "aliases: expected a list"),
        (document(aliases=[7]), "aliases[0]: expected letters"),
        (document(aliases=["a/b"]), "aliases[0]: expected letters"),
        (document(aliases=["m"]), "aliases[0]: 'm' is the route itself"),
        (document(aliases=["a", "a"]), "aliases[1]: 'a' occurs twice"),
        (document(aliases=["digits"]), "aliases[0]: 'digits' is a model"),
        (document(aliases=["free", "work"]), "aliases[1]: 'work' is an alias of route 'n'"),
        (document(aliases=[f"a{i}" for i in range(MAX_ALIASES + 1)]), "aliases: at most 16 entries"),
    ],
)
def test_a_document_that_cannot_be_honoured_is_refused_with_its_path(changed: Any, path: str) -> None:
    with pytest.raises(InvalidRoute) as caught:
        compile_route(changed, name="m", versions=VERSIONS, taken=TAKEN)
    assert caught.value.message.startswith(path)


def test_versions_are_checked_only_against_what_is_loaded() -> None:
    assert compile_route(document(variants=[variant("a", 100, "9")]), name="m").variants[0].version == "9"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(SECTIONS)), json_values)
def test_any_value_anywhere_is_honoured_or_refused(key: str, value: Any) -> None:
    try:
        route = compile_route(document(**{key: value}), name="m", versions=VERSIONS)
    except InvalidRoute:
        return
    assert route.choose({}, 0.5).variant.name in {"stable", "canary"}


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
        lambda deep: document(match=[match(header="x", equals=deep)]),
        lambda deep: document(match=[match(header="x", operator="in", operand=[deep])]),
        lambda deep: document(match=[match(header="x", variant=deep)]),
        lambda deep: document(match=[match(query=deep)]),
        lambda deep: document(holdout=deep),
        lambda deep: document(tenant={"header": deep}),
        lambda deep: document(labels={"gold": deep}),
        lambda deep: document(aliases=[deep]),
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
    assert (route.revision, route.choose({"x-user-id": "u"}, 0.5).variant.version) == (0, "3")


@pytest.mark.parametrize(
    "document_",
    [
        document(),
        document(variants=[variant("only", 100)]),
        document(variants=[variant("a", 33.3), variant("b", 33.3, "2"), variant("c", 33.4, "3")]),
        document(sticky={"header": "X-User-Id"}, salt="2026-experiment"),
        document(match=[{"header": "X-Beta", "equals": "1", "variant": "canary"}]),
        document(salt="m", match=[], holdout=0, labels={}, aliases=[]),
        document(sticky={"cookie": "Uid", "fallback": "stable"}, holdout=2.5, labels={"gold": "canary"}),
        document(sticky={"parameter": "user"}, aliases=["jobs", "Jobs"]),
        document(sticky={"id": True}),
        document(
            tenant={"header": "X-Tenant"},
            match=[
                match(tenant=True, operator="in", operand=["globex", "acme"]),
                match(query="v", operator="prefix", operand="b"),
                match(header="x-staff", operator="present", operand=True),
                match(header="x-bot", operator="present", operand=False, variant="canary"),
            ],
        ),
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
    ("earlier", "later"),
    [
        (match(header="X-Beta"), match(header="x-beta", variant="canary")),
        (match(header="x", operator="present", operand=True), match(header="x")),
        (match(header="x", operator="present", operand=True), match(header="x", operator="prefix", operand="a")),
        (match(header="x", operator="present", operand=True), match(header="x", operator="present", operand=True)),
        (match(header="x", operator="present", operand=False), match(header="x", operator="present", operand=False)),
        (
            match(header="x", operator="in", operand=["1", "2", "3"]),
            match(header="x", operator="in", operand=["3", "1"]),
        ),
        (match(header="x", operator="prefix", operand="a"), match(header="x", operator="prefix", operand="ab")),
        (match(query="x", operator="prefix", operand="a"), match(query="x", operator="in", operand=["ab", "ac"])),
        (match(tenant=True), match(header="x-tenant")),
    ],
)
def test_a_rule_that_is_never_reached_is_refused(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    tenant = {"tenant": {"header": "x-tenant"}} if "tenant" in earlier else {}
    with pytest.raises(InvalidRoute) as caught:
        compile_route(document(match=[match(header="other"), earlier, later], **tenant), name="m")
    assert caught.value.message == "match[2]: is never reached: match[1] takes all requests that it would"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (match(header="x"), match(header="y")),
        (match(header="x"), match(query="x")),
        (match(header="x"), match(header="x", operator="in", operand=["1", "2"])),
        (match(header="x"), match(header="x", operator="prefix", operand="1")),
        (match(header="x"), match(header="x", operator="present", operand=True)),
        (match(header="x", operator="prefix", operand="ab"), match(header="x", operator="prefix", operand="a")),
        (match(header="x", operator="prefix", operand="a"), match(header="x", operator="in", operand=["ab", "b"])),
        (match(header="x", operator="present", operand=True), match(header="x", operator="present", operand=False)),
        (match(header="x", operator="present", operand=False), match(header="x", operator="present", operand=True)),
        (match(header="x", operator="present", operand=False), match(header="x")),
        (match(query="x"), match(query="X")),
    ],
)
def test_a_rule_that_somebody_may_still_reach_is_not(earlier: dict[str, Any], later: dict[str, Any]) -> None:
    assert len(compile_route(document(match=[earlier, later]), name="m").matches) == 2
