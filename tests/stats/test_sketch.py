import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stats.codec import PREFIX, from_bytes, to_bytes
from gateway.stats.sketch import (
    MAX_CATEGORIES,
    MAX_DISCRETE_BINS,
    CategoricalSketch,
    FeatureSketch,
    NumericSketch,
    WindowSketch,
    as_categories,
)
from gateway.types import Array, string_array

REFERENCE = WindowSketch(
    {
        "age": NumericSketch.of_reference(np.arange(1000.0)),
        "state": CategoricalSketch.of_reference(string_array(["CA", "NY"] * 500, (1000,))),
    },
    rows=1000,
)

ROWS = st.lists(
    st.tuples(
        st.one_of(st.floats(width=32), st.integers(-5, 5).map(float)), st.sampled_from(["CA", "NY", "TX", "", "?"])
    ),
    max_size=60,
)


def sketch_of(rows: list[tuple[float, str]]) -> WindowSketch:
    sketch = REFERENCE.empty()
    ages = np.array([age for age, _ in rows], dtype=np.float64)
    sketch.update({"age": ages, "state": string_array([state for _, state in rows], (len(rows),))})
    return sketch


def numeric(sketch: WindowSketch, name: str = "age") -> NumericSketch:
    field = sketch.fields[name]
    assert isinstance(field, NumericSketch)
    return field


def state_of(sketch: WindowSketch) -> object:
    """All that is exact about a sketch. These samples are small enough for the quantiles to be exact too."""
    counts = {name: (field.counts.tolist(), field.missing) for name, field in sketch.fields.items()}
    return sketch.rows, counts, sorted(value for value, _ in numeric(sketch).quantiles)


@given(ROWS, ROWS, ROWS)
def test_merging_is_associative_and_the_same_as_seeing_all_rows(
    a: list[tuple[float, str]], b: list[tuple[float, str]], c: list[tuple[float, str]]
) -> None:
    left = sketch_of(a).merged(sketch_of(b)).merged(sketch_of(c))
    right = sketch_of(a).merged(sketch_of(b).merged(sketch_of(c)))
    assert state_of(left) == state_of(right) == state_of(sketch_of(a + b + c))


@given(ROWS)
def test_bytes_hold_everything(rows: list[tuple[float, str]]) -> None:
    sketch = sketch_of(rows)
    restored = from_bytes(to_bytes(sketch))
    assert state_of(restored) == state_of(sketch)
    restored.merge(sketch)
    assert restored.rows == 2 * sketch.rows


@given(st.binary(max_size=200))
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="not a window sketch"):
        from_bytes(junk)


@given(st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    good = to_bytes(sketch_of([(1.0, "CA"), (2.0, "NY")]))
    position = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    if PREFIX.size - 4 <= position < PREFIX.size:
        return  # The header's length is not under the checksum; a wrong one fails to parse, as the test below shows.
    with pytest.raises(ValueError, match="not a window sketch"):
        from_bytes(good[:position] + bytes([good[position] ^ flip]) + good[position + 1 :])


@pytest.mark.parametrize("length", [0, 5, 2**31])
def test_a_wrong_header_length_is_refused(length: int) -> None:
    good = to_bytes(sketch_of([(1.0, "CA")]))
    with pytest.raises(ValueError, match="not a window sketch"):
        from_bytes(good[: PREFIX.size - 4] + length.to_bytes(4, "little") + good[PREFIX.size :])


def test_a_continuous_feature_has_ten_bins_of_equal_reference_share() -> None:
    sketch = NumericSketch.of_reference(np.random.default_rng(0).normal(size=10_000))
    assert sketch.counts.tolist() == [1000] * 10


def test_a_discrete_feature_has_one_bin_a_value() -> None:
    values = np.repeat(np.arange(MAX_DISCRETE_BINS), 5)
    assert NumericSketch.of_reference(values).counts.tolist() == [5] * MAX_DISCRETE_BINS


def test_a_value_with_many_ties_fills_its_own_bin() -> None:
    values = np.concatenate([np.zeros(700), np.linspace(0.001, 1, 300)])
    sketch = NumericSketch.of_reference(values)
    assert sketch.counts.tolist() == [700, 100, 100, 100]


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [3.0, 3.0], [np.inf, -np.inf, np.inf]])
def test_a_reference_without_spread_has_one_bin(values: list[float]) -> None:
    array = np.array(values)
    sketch = NumericSketch.of_reference(array)
    assert len(sketch.counts) == 1
    assert sketch.count + sketch.missing == len(values)


def test_edges_are_the_same_for_single_and_double_precision() -> None:
    values = np.repeat([0.1, 0.2, 0.3], 100)
    sketch = NumericSketch.of_reference(values)
    live = sketch.empty()
    live.add(live.convert(values.astype(np.float32)))
    assert live.counts.tolist() == [100, 100, 100]


def test_missing_and_infinite_numbers_are_counted_apart() -> None:
    sketch = sketch_of([(np.nan, "CA"), (np.inf, "CA"), (1e300, "CA"), (-1e300, "CA")])
    age = sketch.fields["age"]
    assert (age.missing, age.count) == (1, 3)
    assert (age.counts[0], age.counts[-1]) == (1, 2)


def test_unseen_and_missing_categories_are_counted_apart() -> None:
    state = sketch_of([(0.0, "CA"), (0.0, "XX"), (0.0, "")]).fields["state"]
    assert isinstance(state, CategoricalSketch)
    assert (state.counts.tolist(), state.unseen, state.missing) == ([1, 0, 1], 1, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([3.0, np.nan], dtype=np.float32), {"3": 1, None: 1}),
        (np.array([3, 3], dtype=np.int8), {"3": 2}),
        (np.array([0.1, 0.1], dtype=np.float32), {"0.1": 2}),
        (np.array([0.1, 2.5]), {"0.1": 1, "2.5": 1}),
        (np.array([True, False]), {"True": 1, "False": 1}),
        (np.array([None, "a", "", 2.0], dtype=object), {None: 2, "a": 1, "2": 1}),
    ],
)
def test_categories_have_one_name_whatever_their_type(values: Array, expected: dict[str | None, int]) -> None:
    assert as_categories(values) == expected


def test_the_number_of_known_categories_is_bounded() -> None:
    values = string_array([f"c{i}" for i in range(1000)] + ["often"] * 9, (1009,))
    sketch = CategoricalSketch.of_reference(values)
    assert len(sketch.categories) == MAX_CATEGORIES
    assert "often" in sketch.categories
    assert sketch.unseen == 1009 - 9 - (MAX_CATEGORIES - 1)


def test_a_row_that_does_not_fit_changes_nothing() -> None:
    sketch = sketch_of([(1.0, "CA")])
    before = to_bytes(sketch)
    odd: npt.NDArray[np.object_] = string_array(["no number"], (1,))
    states = string_array(["CA"], (1,))
    for columns in ({"state": states, "age": odd}, {"age": np.zeros(1)}, {"age": np.zeros(2), "state": states}):
        with pytest.raises(ValueError, match=r"age|state|lengths"):
            sketch.update(columns)
    assert to_bytes(sketch) == before


def test_text_that_spells_a_number_is_one() -> None:
    sketch = REFERENCE.empty()
    sketch.update({"age": string_array(["12.5"], (1,)), "state": string_array(["CA"], (1,))})
    assert sketch.fields["age"].count == 1


def test_sketches_of_another_layout_do_not_merge() -> None:
    sketch = sketch_of([(1.0, "CA")])
    before = to_bytes(sketch)
    state = CategoricalSketch(["CA", "NY"])
    others: tuple[dict[str, FeatureSketch], ...] = (
        {"age": NumericSketch([1.0]), "state": state},
        {"age": NumericSketch(numeric(sketch).edges), "state": CategoricalSketch(["CA"])},
        {"age": state, "state": state},
        {"state": state},
    )
    for fields in others:
        with pytest.raises(ValueError, match="do not merge"):
            sketch.merge(WindowSketch(fields))
    assert to_bytes(sketch) == before
