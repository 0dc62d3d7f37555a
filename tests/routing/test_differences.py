"""What changed, path by path."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.differences import MAX_DIFFERENCES, differences
from tests.routing.routes import document, match, variant


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"revision": 8}, []),
        ({"variants": [variant("stable", 90), variant("canary", 10, "2")]}, [
            "variants.stable.weight: 95 -> 90",
            "variants.canary.weight: 5 -> 10",
        ]),
        ({"variants": [variant("canary", 5, "2"), variant("stable", 95)]}, [
            "variants.order: ['stable', 'canary'] -> ['canary', 'stable']",
        ]),
        ({"variants": [variant("stable", 95), variant("beta", 5, "3")]}, [
            "variants.canary: {'name': 'canary', 'version': '2', 'weight': 5} -> nothing",
            "variants.beta: nothing -> {'name': 'beta', 'version': '3', 'weight': 5}",
        ]),
        ({"sticky": {"cookie": "uid"}}, ["sticky.header: 'x' -> nothing", "sticky.cookie: nothing -> 'uid'"]),
        ({"match": [match(header="y")]}, ["match[0].header: 'x' -> 'y'"]),
        ({"match": []}, ["match[0]: {'equals': '1', 'header': 'x', 'variant': 'stable'} -> nothing"]),
        ({"match": "junk"}, ["match: [{'equals': '1', 'header': 'x', 'variant': 'stable'}] -> 'junk'"]),
        ({"salt": "s"}, ["salt: nothing -> 's'"]),
    ],
)  # fmt: skip
def test_each_path_that_differs_is_named_with_both_values(changes: dict[str, Any], expected: list[str]) -> None:
    before = document(sticky={"header": "x"}, match=[match(header="x")])
    assert [str(change) for change in differences(before, {**before, **changes})] == expected


json_objects = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.just("name"), inner),
        max_leaves=12,
    ),
    max_size=4,
)


@given(json_objects, json_objects)
def test_whatever_somebody_typed_in_by_hand_can_be_compared(before: Any, after: Any) -> None:
    assert differences(before, before) == []
    for change in differences(before, after):
        assert change.before != change.after
        assert len(str(change)) < 500


def test_a_deep_nest_is_compared_as_a_whole() -> None:
    deep = orjson.loads(b'{"a":' * 200 + b"1" + b"}" * 200)
    other = orjson.loads(b'{"a":' * 200 + b"2" + b"}" * 200)
    (change,) = differences(deep, other)
    assert change.path == "a.a.a.a.a.a.a.a"


def test_a_flood_of_differences_is_cut() -> None:
    assert len(differences({}, {str(number): number for number in range(10_000)})) == MAX_DIFFERENCES
