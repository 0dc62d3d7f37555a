"""Turns by what they cost, of flows that come and go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.runtime.fair_queue import FairQueue, Flow


def serve(queue: FairQueue[str], flows: list[Flow[str]], costs: dict[str, float], turns: int) -> list[str]:
    """Who was served, of flows that always have more to do."""
    by_name = {flow.owner: flow for flow in flows}
    order = []
    for _ in range(turns):
        name = queue.pop()
        order.append(name)
        by_name[name].tag += costs[name]
        queue.push(by_name[name])
    return order


def wait(*names: str) -> tuple[FairQueue[str], list[Flow[str]]]:
    """A queue in which all of them wait."""
    queue: FairQueue[str] = FairQueue()
    flows = [Flow(name) for name in names]
    for flow in flows:
        queue.push(flow)
    return queue, flows


@settings(max_examples=100, deadline=None)
@given(costs=st.lists(st.floats(1e-4, 10.0), min_size=2, max_size=6), turns=st.integers(1, 300))
def test_those_that_always_wait_never_differ_by_more_than_one_turn_of_each(costs: list[float], turns: int) -> None:
    by_name = {str(number): cost for number, cost in enumerate(costs)}
    queue, flows = wait(*by_name)
    order = serve(queue, flows, by_name, turns)
    used = {name: order.count(name) * cost for name, cost in by_name.items()}
    for one, used_by_one in used.items():
        for other, used_by_other in used.items():
            assert used_by_one - used_by_other <= by_name[one] + by_name[other] + 1e-9


def test_who_comes_back_is_next_and_has_saved_up_nothing() -> None:
    queue, flows = wait("busy")
    serve(queue, flows, {"busy": 1.0}, 100)
    away = Flow("away")
    queue.push(away)
    order = serve(queue, [*flows, away], {"busy": 1.0, "away": 1.0}, 20)
    assert order[0] == "away"
    assert order.count("away") == pytest.approx(10, abs=1)


def test_among_equals_who_came_first_is_first() -> None:
    queue, flows = wait(*"abc")
    assert len(queue.waiting) == 3
    assert "".join(serve(queue, flows, dict.fromkeys("abc", 1.0), 6)) == "abcabc"


def test_a_turn_that_cost_less_than_was_charged_is_made_good() -> None:
    queue, flows = wait("refunded", "other")
    assert queue.pop() == "refunded"
    flows[0].tag += 10.0
    flows[0].tag -= 9.0
    queue.push(flows[0])
    assert serve(queue, flows, {"refunded": 1.0, "other": 2.0}, 3) == ["other", "refunded", "other"]
