import numpy as np
import pytest

from gateway.collector.columns import columns_of, layout, stack
from gateway.runtime.manifest import LABEL_COLUMN, SCORE_COLUMN, Feature, Manifest, Prediction
from gateway.types import Array
from tests.collector.loans import FEATURES, PREDICTION, log_entry, tensors


def manifest(features: tuple[Feature, ...] = FEATURES, prediction: Prediction = PREDICTION) -> Manifest:
    return Manifest.model_construct(features=features, prediction=prediction)


def test_features_and_answers_become_columns() -> None:
    inputs, outputs = tensors(0, 4)
    columns = columns_of(manifest(), inputs, outputs)
    assert list(columns) == ["amount", "grade", "state", LABEL_COLUMN, SCORE_COLUMN]
    np.testing.assert_array_equal(columns["amount"], inputs["numbers"][:, 0])
    assert columns["state"].tolist() == inputs["state"].ravel().tolist()
    np.testing.assert_array_equal(columns[SCORE_COLUMN], outputs["probability"][:, 1])


def test_a_column_is_a_row_major_index() -> None:
    image = np.arange(2 * 8 * 8).reshape(2, 8, 8)
    pixel = Feature(name="pixel", input="image", column=8 * 2 + 3, kind="numeric")
    columns = columns_of(manifest((pixel,)), {"image": image}, tensors(0, 2)[1])
    assert columns["pixel"].tolist() == image[:, 2, 3].tolist()


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_scalars_a_row_may_have_a_second_axis(shape: tuple[int, ...]) -> None:
    feature = Feature(name="x", input="x", kind="numeric")
    value = Prediction(kind="regression", output="y")
    array = np.arange(3.0).reshape(shape)
    columns = columns_of(manifest((feature,), value), {"x": array}, {"y": array})
    assert columns["x"].tolist() == columns[LABEL_COLUMN].tolist() == [0, 1, 2]
    assert SCORE_COLUMN not in columns


@pytest.mark.parametrize(
    ("probability", "score"),
    [
        ([[0.9, 0.1]], 0.1),
        ([[0.2, 0.5, 0.3]], 0.5),
        ([[0.7]], 0.7),
        ([0.7], 0.7),
    ],
)
def test_the_score_is_that_of_the_second_class_or_of_the_answer(probability: list[float], score: float) -> None:
    inputs, outputs = tensors(0, 1)
    outputs["probability"] = np.array(probability)
    assert columns_of(manifest(), inputs, outputs)[SCORE_COLUMN].tolist() == [score]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": None}, "input 'numbers' is missing"),
        ({"numbers": np.zeros((4, 1))}, "asks for number 1"),
        ({"label": None}, "output 'label' is missing"),
        ({"label": np.zeros((4, 2))}, "expected one answer"),
        ({"probability": None}, "output 'probability' is missing"),
        ({"probability": np.array(["?"] * 4, dtype=object)}, "no probabilities"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Array | None], message: str) -> None:
    inputs, outputs = tensors(0, 4)
    for name, array in change.items():
        for table in (inputs, outputs):
            if table.pop(name, None) is not None and array is not None:
                table[name] = array
    with pytest.raises(ValueError, match=message):
        columns_of(manifest(), inputs, outputs)


def test_entries_of_the_same_layout_stack() -> None:
    entries = [log_entry(*tensors(seed, rows)) for seed, rows in ((0, 3), (1, 2))]
    assert layout(entries[0]) == layout(entries[1])
    inputs, outputs = stack(entries)
    assert inputs["numbers"].shape == (5, 2)
    assert inputs["state"].shape == (5, 1)
    assert outputs["label"].shape == (5,)


def test_other_datatypes_and_shapes_are_another_layout() -> None:
    inputs, outputs = tensors(0, 2)
    layouts = {
        layout(log_entry(inputs | {"numbers": numbers}, outputs))
        for numbers in (inputs["numbers"], inputs["numbers"].astype(np.float64), inputs["numbers"][:, :1])
    }
    assert len(layouts) == 3
