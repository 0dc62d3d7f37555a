from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.errors import StartupError
from gateway.prediction_id import class_summary, value_summary
from gateway.runtime.answers import AnswerReader, answer_column, score_column
from gateway.runtime.manifest import Prediction
from gateway.types import Array, Signature, TensorSpec, string_array

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("answer", "INT64", (-1,)), TensorSpec("score", "FP32", (-1, 2)))
)


def reader(**fields: Any) -> AnswerReader:
    return AnswerReader(
        Prediction(**{"kind": "classification", "output": "answer", "score": "score", **fields}), SIGNATURE
    )


def summaries(of: AnswerReader, answers: Array, scores: Array) -> list[int | None]:
    return of.summaries([answers, scores])


SCORES = np.array([[0.75, 0.25], [0.1, 0.9]], np.float32)


def test_a_class_is_packed_with_the_probability_of_the_second_of_two() -> None:
    packed = summaries(reader(), np.array([0, 1]), SCORES)
    assert packed == [class_summary(0, float(SCORES[0, 1])), class_summary(1, float(SCORES[1, 1]))]


def test_with_more_classes_the_score_is_that_of_the_likeliest() -> None:
    scores = np.array([[0.2, 0.5, 0.3]], np.float32)
    assert summaries(reader(), np.array([1]), scores) == [class_summary(1, 0.5)]


def test_classes_with_names_are_packed_by_their_place() -> None:
    named = reader(classes=("no", "yes"))
    assert summaries(named, string_array(["yes", "no"], (2,)), SCORES) == [
        class_summary(1, float(SCORES[0, 1])),
        class_summary(0, float(SCORES[1, 1])),
    ]
    assert [named.answer_text(index) for index in (0, 1)] == ["no", "yes"]


def test_classes_that_are_numbers_are_found_by_their_text() -> None:
    assert summaries(reader(classes=("10", "20")), np.array([20, 10]), SCORES)[0] == class_summary(1, 0.25)


@pytest.mark.parametrize("answers", [np.array([-1, 70_000]), string_array(["a", "b"], (2,)), np.array([0.0, 1.0])])
def test_an_answer_without_a_place_in_an_id_has_no_summary(answers: Array) -> None:
    assert summaries(reader(), answers, SCORES) == [None, None]


def test_an_answer_that_the_manifest_does_not_list_has_no_summary() -> None:
    assert summaries(reader(classes=("0",)), np.array([0, 1]), SCORES)[1] is None


def test_a_score_that_is_no_number_does_not_cost_the_answer() -> None:
    scores = np.array([[np.nan, np.nan], [0.1, 0.9]], np.float32)
    assert summaries(reader(), np.array([1, 0]), scores)[0] == class_summary(1, None)


def test_values_are_packed_as_the_float32_nearest_to_them() -> None:
    regression = reader(kind="regression", score=None)
    assert summaries(regression, np.array([1.5, -2.0]), SCORES) == [value_summary(1.5), value_summary(-2.0)]


@pytest.mark.parametrize("value", [1e300, -1e300, np.inf, np.nan])
def test_a_value_that_float32_cannot_hold_has_no_summary(value: float) -> None:
    assert summaries(reader(kind="regression", score=None), np.array([value, 1.0]), SCORES) == [
        None,
        value_summary(1.0),
    ]


@pytest.mark.parametrize("field", ["output", "score"])
def test_a_manifest_that_names_an_output_the_model_lacks_is_refused(field: str) -> None:
    with pytest.raises(StartupError, match="names output 'absent'; outputs: answer, score"):
        reader(**{field: "absent"})


@pytest.mark.parametrize(
    "fields", [{"kind": "regression", "output": "text", "score": None}, {"kind": "classification", "score": "text"}]
)
def test_a_manifest_that_expects_numbers_of_an_output_of_strings_is_refused(fields: dict[str, Any]) -> None:
    signature = Signature(SIGNATURE.inputs, (*SIGNATURE.outputs, TensorSpec("text", "BYTES", (-1,))))
    with pytest.raises(StartupError, match="needs numbers; output 'text' holds strings"):
        AnswerReader(Prediction(**{"output": "answer", **fields}), signature)


def test_columns_are_one_value_a_row() -> None:
    prediction = Prediction(kind="classification", output="answer", score="score")
    outputs = {"answer": np.array([[3], [4]]), "score": np.array([[0.2], [0.8]])}
    assert answer_column(prediction, outputs).tolist() == [3, 4]
    scores = score_column(prediction, outputs)
    assert scores is not None
    assert scores.tolist() == [0.2, 0.8]
    assert score_column(prediction.model_copy(update={"score": None}), outputs) is None
