import doctest

import pytest

from bench import probes
from bench.columns import columns_of
from bench.probes import PROBES, best_of, swept_sizes, unsuccessful
from bench.scenarios import SCENARIOS, SWEPT
from bench.zoo import file_of

RUNTIME = [name for name, one in SCENARIOS.items() if one.load == "runtime"]


def test_examples_in_the_docstrings_hold() -> None:
    failures, attempts = doctest.testmod(probes)

    assert failures == 0
    assert attempts > 0


def test_each_runtime_scenario_has_a_probe_and_columns() -> None:
    assert sorted(RUNTIME) == sorted(PROBES)
    assert all(columns_of(name) for name in RUNTIME)


def test_all_bundled_models_are_swept() -> None:
    swept = {file_of(name) for name in SWEPT.values()}

    bundled = file_of("digits").parents[2].glob("*/*/model.onnx")
    assert set(bundled) < swept


@pytest.mark.parametrize(
    ("request_rows", "in_flight", "sizes"),
    [(1, 1024, [1, 2, 4, 8, 16, 32, 64, 128, 256]), (8, 100, [8, 16, 32, 64]), (256, 256, [256])],
)
def test_sizes_that_can_make_a_difference(request_rows: int, in_flight: int, sizes: list[int]) -> None:
    assert swept_sizes(request_rows, in_flight) == sizes


def test_the_best_by_the_mean_of_its_rates() -> None:
    rates = {"lucky": [200.0, 50.0], "steady": [140.0, 140.0], "slow": [10.0]}

    assert best_of(rates, 1) == ["steady"]
    assert best_of(rates, 2) == ["steady", "lucky"]


def test_whatever_is_no_prediction_is_unsuccessful() -> None:
    kinds = {"refused": 1, "failed": 10, "lost": 100, "unsent": 1000, "unanswered": 10_000}

    assert unsuccessful({**kinds, "answered": 7, "offered": 11_118}) == 11_111
