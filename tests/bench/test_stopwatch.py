from __future__ import annotations

import pytest

from bench.stopwatch import REST, Point, Stopwatch, TimerCost, replaced, timer_cost, timing

FREE = TimerCost(0.0, 0.0)


class Time:
    """A clock that stands still until it is told, and a thread that has the core for half of the time."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now / 2


class Oven:
    """Bakes for eight seconds, five of which it heats."""

    def __init__(self, time: Time) -> None:
        self.time = time

    def bake(self, *, is_cold: bool = True) -> str:
        self.time.now += 1.0
        if is_cold:
            self.heat()
        self.time.now += 2.0
        return "bread"

    def heat(self) -> None:
        self.time.now += 5.0


class SmallOven(Oven):
    """Inherits everything."""


POINTS = (Point("baking", Oven, "bake"), Point("heating", Oven, "heat"))


def test_parts_are_charged_their_own_time_alone() -> None:
    time = Time()
    stopwatch = Stopwatch(time.clock, time.cpu)
    with timing(stopwatch, POINTS):
        time.now += 4.0

        assert Oven(time).bake() == "bread"
        assert Oven(time).bake(is_cold=False) == "bread"

    assert stopwatch.spent(FREE) == {REST: 2.0, "baking": 3.0, "heating": 2.5}
    assert [stopwatch.calls(part) for part in ("baking", "heating", "cooling")] == [2, 1, 0]


def test_the_cost_of_timing_is_taken_off_caller_and_called() -> None:
    time = Time()
    stopwatch = Stopwatch(time.clock, time.cpu)
    with timing(stopwatch, POINTS):
        Oven(time).bake()

    assert stopwatch.spent(TimerCost(caller=0.25, called=0.5)) == {REST: -0.25, "baking": 0.75, "heating": 2.0}


def test_what_was_timed_before_a_restart_does_not_count() -> None:
    time = Time()
    stopwatch = Stopwatch(time.clock, time.cpu)
    with timing(stopwatch, POINTS):
        Oven(time).bake()
        stopwatch.restart()
        Oven(time).heat()

    assert stopwatch.spent(FREE) == {REST: 0.0, "heating": 2.5}


def test_a_function_that_raises_ends_its_part() -> None:
    time = Time()
    stopwatch = Stopwatch(time.clock, time.cpu)
    with pytest.raises(ZeroDivisionError):
        stopwatch.timed("dividing", lambda: 1 / 0)()
    time.now += 2.0

    assert stopwatch.spent(FREE) == {REST: 1.0, "dividing": 0.0}


def test_functions_are_themselves_again_afterwards() -> None:
    bake = Oven.bake
    with timing(Stopwatch(), POINTS):
        during = Oven.bake

    assert during is not bake
    assert Oven.bake is bake


@pytest.mark.parametrize(("owner", "name"), [(Oven, "roast"), (SmallOven, "bake")])
def test_a_function_that_is_not_there_is_an_error_and_the_others_are_left_as_they_were(owner: type, name: str) -> None:
    bake = Oven.bake
    with (
        pytest.raises(LookupError, match=f"{owner.__name__} has no function '{name}'"),
        timing(Stopwatch(), [*POINTS, Point("else", owner, name)]),
    ):
        pass

    assert Oven.bake is bake
    with pytest.raises(LookupError), replaced(owner, name, bake):
        pass


def test_timing_a_call_costs_less_than_anything_that_is_timed() -> None:
    cost = timer_cost()

    assert 0 < cost.caller < 20e-6
    assert 0 < cost.called < 20e-6
