"""What a graph says about rows, read without running it."""

from __future__ import annotations

import pytest

from gateway.runtime.batch_axes import MAX_CANDIDATES, Dimension, Graph, GraphTensor, candidates, without_rows

Dimensions = tuple[Dimension, ...]


def graph(inputs: list[Dimensions], outputs: list[Dimensions]) -> Graph:
    return Graph(
        tuple(GraphTensor(f"x{index}", "FP32", dimensions) for index, dimensions in enumerate(inputs)),
        tuple(GraphTensor(f"y{index}", "FP32", dimensions) for index, dimensions in enumerate(outputs)),
    )


def readings(inputs: list[Dimensions], outputs: list[Dimensions]) -> list[list[int | None]]:
    found = candidates(graph(inputs, outputs))
    assert all(signature.is_batchable for signature in found)
    return [[spec.axis for spec in signature.inputs + signature.outputs] for signature in found]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([("n", 3)], [("n",)], [0, 0]),
        ([(None, 3)], [(None, 2)], [0, 0]),
        ([("a", 3)], [("b", 2)], [0, 0]),
        ([("N", 3), (2, "N", 8)], [("N", 3), (2, "N", 8)], [0, 1, 0, 1]),
        ([("seq", "batch", 4)], [("seq", "batch", 4)], [1, 1]),
        ([("batch_size", "seq"), ("batch_size", "seq")], [("batch_size", "seq", 8)], [0, 0, 0]),
        ([("N", "T"), ()], [("N", 5)], [0, None, 0]),
        ([(None, 3), (1,)], [(None, 3)], [0, None, 0]),
        ([("N", 3), ("m", 4)], [("N", 3)], [0, None, 0]),
    ],
)
def test_the_likeliest_reading(inputs: list[Dimensions], outputs: list[Dimensions], expected: list[int | None]) -> None:
    assert readings(inputs, outputs)[0] == expected


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([(1, 3)], [(1, 3)]),
        ([()], [()]),
        ([], [("N",)]),
        ([("N", 3)], [(1,)]),
        ([("N", 3)], [()]),
        ([("N", "N")], [(1,)]),
        ([(3, None)], [(3, None)]),
    ],
)
def test_no_reading_has_rows(inputs: list[Dimensions], outputs: list[Dimensions]) -> None:
    assert readings(inputs, outputs) == []
    assert not without_rows(graph(inputs, outputs)).is_batchable


def test_other_readings_follow_each_once() -> None:
    assert readings([("p", "q", 2)], [("p", "q", 2)]) == [[0, 0], [1, 1]]
    assert readings([("N", 3), (2, "N")], [(None, 3), (2, None)]) == [[0, 1, 0, 1]]


def test_there_is_an_end_to_guessing() -> None:
    names = tuple("abcdefgh")
    assert len(readings([names], [names])) == MAX_CANDIDATES
