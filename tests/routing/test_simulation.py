"""A simulation says exactly what the route would do, as far as the log knows, and says where it does not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from gateway.routing import Route, compile_route
from gateway.routing.simulation import Routed, Simulation
from tests.routing.routes import document, match, route_of, variant

HEADERS: list[dict[str, str]] = [
    {"user": str(number), **({"x-beta": "1"} if number % 10 == 0 else {})} for number in range(2_000)
]
WITHOUT_UNIT: list[dict[str, str]] = [{}] * 100
BETA = [match(header="x-beta", variant="v1")]


def logged(route: Route, headers: list[dict[str, str]]) -> list[Routed]:
    """What the log would hold of these requests."""
    decisions = [route.choose(one, 0.99) for one in headers]
    return [
        Routed(one.variant.name, route.revision, route.units, one.bucket, one.holdout_bucket, one.rule)
        for one in decisions
    ]


def simulated(old: Route, new: Route, headers: list[dict[str, str]] = HEADERS) -> dict[str, Any]:
    simulation = Simulation(new, {old.revision: [rule.condition for rule in old.matches]})
    simulation.add(logged(old, headers))
    return simulation.document()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (route_of(90, 10), route_of(80, 20)),
        (route_of(90, 10), route_of(90, 10)),
        (route_of(50, 30, 20), route_of(20, 30, 50)),
        (route_of(90, 10), route_of(50, 30, 20)),
        (route_of(90, 10, match=BETA), route_of(80, 20, match=BETA)),
        (route_of(90, 10, match=BETA), route_of(80, 20)),
        (route_of(90, 10, match=BETA), route_of(90, 10, match=[*BETA, match(header="x-staff", variant="v0")])),
        (route_of(50, 50, holdout=10), route_of(20, 80, holdout=30)),
        (route_of(50, 50, holdout=10), route_of(50, 50)),
        (route_of(90, 10), route_of(0, 100, match=[])),
        (route_of(50, 50), route_of(100)),
    ],
)
def test_of_sticky_units_under_the_same_salt_it_says_what_happens_to_each(old: Route, new: Route) -> None:
    said = simulated(old, new)
    moves = Counter((old.choose(one, 0).variant.name, new.choose(one, 0).variant.name) for one in HEADERS)
    moved = {move: count for move, count in moves.items() if move[0] != move[1]}
    assert {(move["from"], move["to"]): move["units"] for move in said["moves"]} == moved
    assert (said["requests"], said["certain"], said["units"]) == (2_000, 2_000, 2_000)
    assert said["moved"] == sum(moved.values())
    now = Counter(new.choose(one, 0).variant.name for one in HEADERS)
    assert {one["name"]: one["now"] for one in said["variants"] if one["now"]} == now


@pytest.mark.parametrize(
    ("new", "share"),
    [
        (route_of(80, 20, salt="other"), 0.2),
        (route_of(80, 20, sticky={"cookie": "user"}), 0.2),
        (route_of(80, 20, sticky=None), 0.2),
        (route_of(80, 20, salt="other", holdout=50), 0.1),
        (route_of(80, 20, holdout=50), 0.1),
    ],
)
def test_where_the_log_does_not_say_it_says_what_is_expected(new: Route, share: float) -> None:
    old = route_of(90, 10)
    said = simulated(old, new)
    assert (said["certain"], said["units"], said["moves"]) == (0, 0, [])
    assert said["variants"][1]["now"] == pytest.approx(2_000 * share, abs=0.05)
    then = said["variants"][1]["then"]
    assert said["moved"] == pytest.approx(then * (1 - share) + (2_000 - then) * share, abs=0.05)
    (note,) = said["notes"]
    assert note.startswith("of 2000 requests, who ")


def test_requests_without_a_unit_are_left_to_chance_unless_there_is_a_fallback() -> None:
    old, falling = route_of(90, 10), route_of(90, 10, sticky={"header": "user", "fallback": "v0"})
    assert simulated(old, route_of(80, 20), WITHOUT_UNIT)["certain"] == 0
    assert simulated(old, falling, WITHOUT_UNIT)["certain"] == 100
    assert simulated(old, falling, WITHOUT_UNIT)["units"] == 0


def test_a_rule_that_has_changed_is_not_guessed_at() -> None:
    old = route_of(90, 10, match=BETA)
    said = simulated(old, route_of(90, 10, match=[match(header="x-beta", operand="2", variant="v1")]))
    assert said["certain"] == 1_800
    assert any("200 requests" in note and "headers are not logged" in note for note in said["notes"])
    assert any(note.startswith("match[0] is new") for note in said["notes"])


def test_a_rule_of_a_revision_that_nobody_remembers_is_not_guessed_at_either() -> None:
    route = route_of(90, 10, match=BETA)
    simulation = Simulation(route, {})
    simulation.add(logged(route, HEADERS))
    assert simulation.document()["certain"] == 1_800


def test_requests_that_named_their_version_are_nobodys_business() -> None:
    simulation = Simulation(route_of(90, 10), {})
    simulation.add([Routed("", 0)] * 3)
    said = simulation.document()
    assert (said["requests"], said["by_version"], said["moved"]) == (0, 3, 0)


def test_a_route_that_stuck_to_nothing_has_no_units() -> None:
    old = compile_route(document(variants=[variant("v0", 90), variant("v1", 10)]), name="m")
    said = simulated(old, route_of(80, 20))
    assert (said["certain"], said["units"]) == (0, 0)
    assert said["variants"][0] == {"name": "v0", "then": 2_000, "now": 1_600}


def test_a_log_over_several_revisions_says_so_and_counts_a_unit_once() -> None:
    first, second = route_of(90, 10), route_of(50, 50, revision=8)
    simulation = Simulation(route_of(50, 50), {7: (), 8: ()})
    simulation.add(logged(first, HEADERS))
    simulation.add(logged(second, HEADERS))
    said = simulation.document()
    assert (said["units"], said["moves"]) == (2_000, [])
    assert said["notes"] == ["the log spans revisions 7 to 8"]
