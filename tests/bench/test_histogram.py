import doctest

import numpy as np
import pytest

from bench import histogram as module
from bench.histogram import Histogram


@pytest.mark.parametrize("percent", [50, 90, 99, 99.9])
def test_percentiles_are_within_a_bucket_of_the_exact_ones(percent: float) -> None:
    durations = np.random.default_rng(7).lognormal(-8, 1.5, 20_011)
    histogram = Histogram()
    for seconds in durations.tolist():
        histogram.add(seconds)

    exact = np.percentile(durations, percent, method="inverted_cdf") * 1e6

    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.011)


def test_extremes_have_a_place() -> None:
    histogram = Histogram()
    for seconds in (0.0, -1e-9, 1e-9, 1e6):
        histogram.add(seconds)

    assert histogram.count == 4
    assert histogram.percentile(50) == 1.0
    assert histogram.percentile(100) > 4e8


def test_nothing_recorded_is_zero() -> None:
    assert Histogram().summary() == {"p50_us": 0.0, "p90_us": 0.0, "p99_us": 0.0, "p999_us": 0.0}


def test_the_example_gives_the_stated_figures() -> None:
    failures, attempts = doctest.testmod(module)

    assert attempts
    assert not failures
