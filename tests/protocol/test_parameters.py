from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import InvalidRequest, Unsupported
from gateway.protocol.parameters import DEFAULT_PRIORITY, PRIORITY_LEVELS, Schedule, check_values, schedule_of


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"customer": "a", "weight": 1.5, "is_test": True, "": 1, "headers": "x"},
        {"priority": 0},
        {"priority": PRIORITY_LEVELS},
        {"timeout": 0},
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"sequence_id": ""},
    ],
)
def test_what_asks_nothing_of_the_queue_leaves_the_request_as_it_is(parameters: dict[str, Any]) -> None:
    assert schedule_of(parameters) is None


@pytest.mark.parametrize(
    ("parameters", "schedule"),
    [
        ({"priority": 1}, Schedule(1, None)),
        ({"priority": 2, "timeout": 1_500_000}, Schedule(2, 1.5)),
        ({"timeout": 1}, Schedule(DEFAULT_PRIORITY, 1e-6)),
        ({"priority": 0, "timeout": 10**30}, Schedule(DEFAULT_PRIORITY, 1e24)),
    ],
)
def test_a_priority_and_a_timeout_in_microseconds_are_a_schedule(
    parameters: dict[str, Any], schedule: Schedule
) -> None:
    assert schedule_of(parameters) == schedule


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"triton_enable_empty_final_response": True},
            "parameters.triton_enable_empty_final_response: names that start",
        ),
        ({"triton_": 1}, "are reserved"),
        ({"sequence_id": 7}, "parameters.sequence_id: stateful sequences are not supported"),
        ({"sequence_id": "seven"}, "parameters.sequence_id: "),
        ({"sequence_start": True}, "parameters.sequence_start: "),
        ({"sequence_end": 1}, "parameters.sequence_end: "),
        ({"priority": PRIORITY_LEVELS + 1}, "parameters.priority: expected a whole number from 0 (the default) to "),
        ({"priority": -1}, "1 is first, got -1"),
        ({"priority": True}, "got True"),
        ({"priority": 1.0}, "got 1.0"),
        ({"priority": "1"}, "got '1'"),
        ({"timeout": -1}, "parameters.timeout: expected a whole number from 0 on, in microseconds, got -1"),
        ({"timeout": 0.5}, "got 0.5"),
        ({"timeout": False}, "got False"),
    ],
)
def test_what_cannot_be_honoured_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        schedule_of(parameters)
    assert message in caught.value.message


@pytest.mark.parametrize("value", [None, [], {}, [1], {"a": 1}])
def test_a_parameter_is_a_string_a_number_or_a_bool(value: Any) -> None:
    check_values({"a": "x", "b": 1, "c": 0.5, "d": False}, "parameters")
    with pytest.raises(InvalidRequest, match=r"inputs\[0\]\.parameters\.a: expected a string, a number or a bool"):
        check_values({"a": value}, "inputs[0].parameters")


def test_a_tensor_in_shared_memory_is_not_supported() -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
    with pytest.raises(Unsupported, match=r"inputs\[0\]\.parameters\.shared_memory_region: shared memory is not"):
        check_values(parameters, "inputs[0].parameters")


@pytest.mark.parametrize(
    ("asked", "besides", "both"),
    [
        (Schedule(1, 2.0), None, Schedule(1, 2.0)),
        (Schedule(1, 2.0), Schedule(timeout=1.0), Schedule(1, 1.0)),
        (Schedule(1, 2.0), Schedule(timeout=3.0), Schedule(1, 2.0)),
        (Schedule(1), Schedule(timeout=3.0), Schedule(1, 3.0)),
        (Schedule(1), Schedule(patience=3.0), Schedule(1, None, 3.0)),
        (Schedule(2, 2.0), Schedule(patience=1.0), Schedule(2, 2.0, 1.0)),
    ],
)
def test_of_two_timeouts_the_shorter_counts(asked: Schedule, besides: Schedule | None, both: Schedule) -> None:
    assert asked.within(besides) == both
