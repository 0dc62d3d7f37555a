import numpy as np
import pytest
from scipy import stats

from gateway.stats.drift import (
    benjamini_hochberg,
    chi_square,
    excess_p,
    kolmogorov_smirnov,
    minimum_detectable_ks,
    pool_rare,
    population_stability,
)
from gateway.stats.sketch import NumericSketch
from gateway.types import Array


def pair(reference: Array, window: Array) -> tuple[NumericSketch, NumericSketch]:
    sketch = NumericSketch.of_reference(reference)
    live = sketch.empty()
    live.add(live.convert(window))
    return sketch, live


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_distance_agrees_with_the_exact_one(shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=10_000), rng.normal(shift, size=20_000)
    result = kolmogorov_smirnov(*pair(a, b))
    assert result.distance == pytest.approx(stats.ks_2samp(a, b).statistic, abs=0.005)
    assert 0.006 < result.error < 0.008


def test_ties_do_not_inflate_the_distance() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, 10_000), rng.integers(0, 5, 10_000)
    assert kolmogorov_smirnov(*pair(a, b)).distance == pytest.approx(stats.ks_2samp(a, b).statistic, abs=0.005)


def test_infinite_values_are_part_of_the_distribution() -> None:
    a = np.arange(1000.0)
    b = np.where(a < 300, np.inf, a)
    assert kolmogorov_smirnov(*pair(a, b)).distance == pytest.approx(0.3, abs=0.01)


def test_without_drift_p_is_rarely_small() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=10_000)
    p_values = [kolmogorov_smirnov(*pair(reference, rng.normal(size=500))).p for _ in range(200)]
    assert sum(p < 0.01 for p in p_values) <= 6  # 99 % point of Binomial(200, 0.01)


@pytest.mark.parametrize(("distance", "n"), [(0.1, 1_000), (0.2, 500)])
def test_shifts_are_significant(distance: float, n: int) -> None:
    rng = np.random.default_rng(3)
    reference = rng.normal(size=10_000)
    shift = 2 * stats.norm.ppf((1 + distance) / 2)  # D of two unit normals is 2 Phi(shift / 2) - 1.
    p_values = [kolmogorov_smirnov(*pair(reference, rng.normal(shift, size=n))).p for _ in range(50)]
    assert sum(p < 0.01 for p in p_values) >= 48


def test_the_minimum_detectable_distance_is_where_p_crosses_one_percent() -> None:
    n, m = 10_000, 500
    below, above = minimum_detectable_ks(n, m) - 0.001, minimum_detectable_ks(n, m) + 0.001
    assert stats.kstwobign.sf(np.sqrt(n * m / (n + m)) * below) > 0.01
    assert stats.kstwobign.sf(np.sqrt(n * m / (n + m)) * above) < 0.01


def test_the_stability_index_agrees_with_numpy() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=10_000), rng.normal(0.3, 1.2, size=5_000)
    sketch, live = pair(a, b)
    bounds = np.concatenate([[-np.inf], np.quantile(a, np.arange(1, 10) / 10), [np.inf]])
    r, w = np.histogram(a, bounds)[0] / 10_000, np.histogram(b, bounds)[0] / 5_000
    expected = float(np.sum((w - r) * np.log(w / r)))
    assert population_stability(sketch.counts, live.counts).raw == pytest.approx(expected, rel=0.01)


def test_the_stability_index_of_noise_is_near_zero_once_adjusted() -> None:
    rng = np.random.default_rng(5)
    reference = rng.normal(size=10_000)
    indexes = []
    for _ in range(200):
        sketch, live = pair(reference, rng.normal(size=200))
        indexes.append(population_stability(sketch.counts, live.counts))
    assert np.mean([index.raw for index in indexes]) > 0.04
    assert np.mean([index.adjusted for index in indexes]) < 0.015
    assert sum(index.raw > index.noise_limit for index in indexes) <= 8


def test_an_empty_bin_gives_a_finite_index() -> None:
    index = population_stability(np.array([500, 500, 0]), np.array([0, 500, 500]))
    assert np.isfinite(index.raw)
    assert index.adjusted > 1


def test_one_bin_cannot_drift() -> None:
    assert population_stability(np.array([500]), np.array([100])) == (0.0, 0.0, 0.0)


def test_chi_square_agrees_with_scipy() -> None:
    table = np.array([[5000, 3000, 2000], [220, 180, 100]])
    expected = stats.chi2_contingency(table, correction=False)
    assert chi_square(table[0], table[1]).p == pytest.approx(expected.pvalue)


def test_the_effect_does_not_shrink_as_the_reference_grows() -> None:
    window = np.array([70, 30])
    effects = [chi_square(np.array([n, n]), window).cramers_v for n in (500, 5_000, 5_000_000)]
    assert max(effects) - min(effects) < 0.02
    assert effects[-1] == pytest.approx(0.2, abs=0.02)


def test_disjoint_categories_have_the_largest_effect() -> None:
    assert chi_square(np.array([1000, 0]), np.array([0, 1000])).cramers_v == pytest.approx(1.0, abs=0.001)


def test_without_drift_many_rare_categories_are_silent() -> None:
    rng = np.random.default_rng(6)
    shares = 1 / np.arange(1, 51)
    shares /= shares.sum()
    reference = rng.multinomial(10_000, shares)
    results = [chi_square(reference, rng.multinomial(500, shares)) for _ in range(200)]
    assert sum(result.p < 0.01 for result in results) <= 6
    assert np.mean([result.cramers_v for result in results]) < 0.05


@pytest.mark.parametrize(
    ("reference", "window", "expected"),
    [
        ([100, 100], [100, 100], ([100, 100], [100, 100])),
        ([100, 100, 0], [100, 100, 0], ([100, 100], [100, 100])),
        ([990, 5, 5], [99, 1, 0], ([1000], [100])),
        ([500, 400, 60, 40, 30], [50, 40, 6, 2, 1], ([500, 400, 60, 70], [50, 40, 6, 3])),
    ],
)
def test_rare_categories_are_pooled(
    reference: list[int], window: list[int], expected: tuple[list[int], list[int]]
) -> None:
    pooled = pool_rare(np.array(reference), np.array(window))
    assert (pooled[0].tolist(), pooled[1].tolist()) == expected


def test_a_single_category_cannot_be_tested() -> None:
    result = chi_square(np.array([1000, 0]), np.array([100, 0]))
    assert (result.p, result.cramers_v, result.cells) == (1.0, 0.0, 1)


def test_excess_agrees_with_the_fisher_test() -> None:
    expected = stats.fisher_exact(np.array([[15, 485], [100, 9_900]]), alternative="greater").pvalue
    assert excess_p(100, 10_000, 15, 500) == pytest.approx(expected)


def test_adjusting_nothing_gives_nothing() -> None:
    assert benjamini_hochberg([]) == []
