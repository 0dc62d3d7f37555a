from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gateway.stats.bands import MIN_VALUES, dkw_radius, ks_of_histograms, largest_by_chance

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@pytest.mark.parametrize(
    ("alpha", "constant"), [(0.05, 8.123), (0.025, 8.623), (0.01, 9.284), (0.005, 9.783), (0.001, 10.943)]
)
def test_the_constants_are_those_of_the_authors(alpha: float, constant: float) -> None:
    """As published with their package confseq; at n = 100 the radius is 0.85 sqrt(C / n)."""
    assert (dkw_radius(MIN_VALUES, alpha) / 0.85) ** 2 * MIN_VALUES == pytest.approx(constant, abs=0.001)


def test_the_band_narrows_with_n_and_widens_with_confidence() -> None:
    radii = [dkw_radius(n, 0.05) for n in (100, 1_000, 10_000, 10_000_000)]

    assert radii == sorted(radii, reverse=True)
    assert dkw_radius(1_000, 0.001) > dkw_radius(1_000, 0.05)
    assert dkw_radius(0, 0.05) == 1.0


def test_few_values_show_nothing() -> None:
    assert largest_by_chance(99, 1_000_000, 0.05) == 1.0


def test_the_error_of_sketches_counts_as_chance() -> None:
    assert largest_by_chance(10_000, 10_000, 0.05, 0.007) == pytest.approx(
        largest_by_chance(10_000, 10_000, 0.05) + 0.007
    )


def test_histograms_see_no_more_than_the_values() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=5_000), rng.normal(0.3, size=3_000)
    points = np.sort(np.concatenate([a, b]))
    exact = np.abs(
        np.searchsorted(np.sort(a), points, "right") / 5_000 - np.searchsorted(np.sort(b), points, "right") / 3_000
    ).max()
    bins = np.quantile(a, np.arange(1, 20) / 20)

    distance = ks_of_histograms(
        np.bincount(np.searchsorted(bins, a), minlength=20), np.bincount(np.searchsorted(bins, b), minlength=20)
    )

    assert exact - 0.03 < distance <= exact


@pytest.mark.parametrize(("slower", "is_found"), [(1.0, False), (1.35, True)])
def test_only_another_shape_of_latency_is_found(slower: float, is_found: bool) -> None:
    """Fifty runs of 20,000 lognormal latencies at a weight of 10 %, each looked at ten times."""
    rng = np.random.default_rng(2)
    bins = np.exp(np.linspace(-3, 3, 61))
    found = 0
    for _ in range(50):
        canary, control = _histograms(rng, bins, 200, slower), _histograms(rng, bins, 1_800, 1.0)
        found += any(
            ks_of_histograms(c, b) > largest_by_chance(int(c.sum()), int(b.sum()), 0.05)
            for c, b in zip(canary, control, strict=True)
        )
    assert found >= 48 if is_found else found == 0


def _histograms(rng: np.random.Generator, bins: Floats, n: int, slower: float) -> Counts:
    """Ten looks, each with `n` more."""
    looks = np.searchsorted(bins, slower * rng.lognormal(0, 0.5, (10, n)))
    return np.cumsum([np.bincount(look, minlength=len(bins) + 1) for look in looks], axis=0)
