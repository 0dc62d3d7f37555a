"""Two-sample tests between the reference and a window: is the difference real, and is it large enough to matter.

The rule of this file: significance (a p-value, at the true sample sizes) and effect (a size that does not grow with the
sample) are separate answers. With many rows everything is significant; with few, noise looks large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from gateway.stats.sketch import Counts, NumericSketch

KS_CRITICAL_99 = 1.63
"""`scipy.stats.kstwobign.isf(0.01)`: the 99 % point of the Kolmogorov distribution."""
MIN_EXPECTED = 5.0
"""Cochran's rule: below five expected in a cell the chi-square approximation is poor."""
PSI_EPSILON = 1e-4
"""Stands in for the share of an empty bin, whose logarithm does not exist."""
PSI_CONFIDENCE = 0.99


class KolmogorovSmirnov(NamedTuple):
    """`distance` is the estimate, `error` what both sketches together may be off."""

    distance: float
    error: float
    p: float
    minimum_detectable: float


class StabilityIndex(NamedTuple):
    """`adjusted` has the expected noise taken out; below `noise_limit` the `raw` index is compatible with no drift."""

    raw: float
    adjusted: float
    noise_limit: float


class ChiSquare(NamedTuple):
    """`cells` is the number of categories left after rare ones were pooled; with one left nothing can be said."""

    p: float
    cramers_v: float
    cells: int
    minimum_detectable: float


def kolmogorov_smirnov(reference: NumericSketch, window: NumericSketch) -> KolmogorovSmirnov:
    """Kolmogorov-Smirnov test from two quantile sketches, each with at least one value.

    D = max |F_r(x) - F_w(x)| over all values that either sketch retains. p uses D less both rank errors, so a sketch
    can hide a difference but never invent one. (`datasketches.ks_test` is not used: it takes the number of *retained*
    values for the sample size and cannot see D < 0.05 at this k, however many rows there are.)

    >>> a, b = NumericSketch([0.5]), NumericSketch([0.5])
    >>> a.add(np.arange(400, dtype=np.float32)), b.add(np.arange(100, 500, dtype=np.float32))
    (None, None)
    >>> result = kolmogorov_smirnov(a, b)
    >>> round(result.distance, 4), result.error, f"{result.p:.1e}", round(result.minimum_detectable, 4)
    (0.25, 0.0, '2.8e-11', 0.1153)
    """
    distance = _distance(reference, window)
    error = reference.rank_error + window.rank_error
    return KolmogorovSmirnov(
        distance=distance,
        error=error,
        p=kolmogorov_smirnov_p(distance - error, reference.count, window.count),
        minimum_detectable=minimum_detectable_ks(reference.count, window.count, error),
    )


def kolmogorov_smirnov_p(distance: float, n: int, m: int) -> float:
    """Asymptotic two-sided p-value: Q(sqrt(n m / (n + m)) D), Q the Kolmogorov survival function (Smirnov 1948).

    >>> round(kolmogorov_smirnov_p(0.1, 500, 500), 5)
    0.01348
    """
    return float(stats.kstwobign.sf(math.sqrt(n * m / (n + m)) * max(0.0, distance)))


def minimum_detectable_ks(n: int, m: int, error: float = 0.0) -> float:
    """Smallest D that would be significant at 1 %: 1.63 sqrt(1/n + 1/m), plus what the sketches may be off.

    >>> round(minimum_detectable_ks(8, 10_000), 3), round(minimum_detectable_ks(500, 10_000, 0.007), 3)
    (0.577, 0.082)
    """
    return KS_CRITICAL_99 * math.sqrt(1 / n + 1 / m) + error


def population_stability(reference: Counts, window: Counts) -> StabilityIndex:
    """Population stability index of two histograms on the same bins, corrected for sampling noise.

    PSI = sum (w_i - r_i) ln(w_i / r_i). Without drift PSI ~ (1/n + 1/m) chi2_{B-1} (Yurdakul & Naranjo 2020, Journal of
    Risk Model Validation 14(4)), so `adjusted` = max(0, PSI - (B-1)(1/n + 1/m)) and `noise_limit` is the 99 % point.

    >>> index = population_stability(np.array([250, 250, 250, 250]), np.array([300, 250, 250, 200]))
    >>> round(index.raw, 5), round(index.adjusted, 5), round(index.noise_limit, 5)
    (0.02027, 0.01427, 0.02269)
    """
    n, m = int(reference.sum()), int(window.sum())
    expected, actual = np.maximum(reference / n, PSI_EPSILON), np.maximum(window / m, PSI_EPSILON)
    raw = float(np.sum((actual - expected) * np.log(actual / expected)))
    noise, degrees = 1 / n + 1 / m, len(reference) - 1
    limit = noise * float(stats.chi2.ppf(PSI_CONFIDENCE, degrees)) if degrees else 0.0
    return StabilityIndex(raw, max(0.0, raw - degrees * noise), limit)


def chi_square(reference: Counts, window: Counts) -> ChiSquare:
    """Chi-square test of homogeneity of two rows of counts, and Cramer's V with the noise taken out.

    Cells with fewer than five expected in either sample are pooled (Cochran 1954). V is that of a table in which both
    samples weigh the same, V^2 = sum (r_i - w_i)^2 / (r_i + w_i) / 2: the plain V shrinks as one sample outgrows the
    other, and the reference always does. Its expected value without drift, (k-1)(1/n + 1/m)/4, is subtracted from V^2
    (after Bergsma 2013, Journal of the Korean Statistical Society 42). It lies between 0 and 1.

    >>> result = chi_square(np.array([5000, 5000]), np.array([300, 200]))
    >>> f"{result.p:.1e}", round(result.cramers_v, 4), result.cells, round(result.minimum_detectable, 4)
    ('1.3e-05', 0.0979, 2, 0.059)
    """
    n, m = int(reference.sum()), int(window.sum())
    observed = np.vstack(pool_rare(reference, window)).astype(np.float64)
    cells = observed.shape[1]
    if cells < 2:
        return ChiSquare(p=1.0, cramers_v=0.0, cells=cells, minimum_detectable=1.0)
    expected = np.outer((n, m), observed.sum(axis=0) / (n + m))
    statistic = float(((observed - expected) ** 2 / expected).sum())
    shares = observed / [[n], [m]]
    effect = float(((shares[0] - shares[1]) ** 2 / shares.sum(axis=0)).sum()) / 2
    noise = (1 / n + 1 / m) / 4
    return ChiSquare(
        p=float(stats.chi2.sf(statistic, cells - 1)),
        cramers_v=math.sqrt(max(0.0, effect - (cells - 1) * noise)),
        cells=cells,
        minimum_detectable=math.sqrt(float(stats.chi2.ppf(0.99, cells - 1)) * noise),
    )


def pool_rare(reference: Counts, window: Counts) -> tuple[Counts, Counts]:
    """Both rows with every cell that expects fewer than five in the smaller sample moved to one last cell.

    If that cell still expects too few, the smallest of the others joins it. Cells that are empty on both sides vanish.

    >>> pool_rare(np.array([500, 400, 1, 2]), np.array([50, 40, 1, 0]))
    (array([500, 403]), array([50, 41]))
    """
    total = reference + window
    share = min(reference.sum(), window.sum()) / total.sum()
    order = np.argsort(-total, kind="stable")
    kept = int(np.sum(total * share >= MIN_EXPECTED))
    rest = total[order[kept:]].sum()
    if 0 < rest * share < MIN_EXPECTED and kept:
        kept -= 1
    pooled = order[kept:]
    rows = []
    for row in (reference, window):
        cells = row[np.sort(order[:kept])]
        rows.append(np.append(cells, row[pooled].sum()) if total[pooled].any() else cells)
    return rows[0], rows[1]


def excess_p(reference_hits: int, n: int, window_hits: int, m: int) -> float:
    """One-sided Fisher exact test that hits are more frequent in the window: P(H >= window_hits), H hypergeometric.

    For rare things - missing values, unseen categories - where chi-square has too few expected.

    >>> f"{excess_p(0, 10_000, 15, 500):.1e}", excess_p(0, 10_000, 0, 500)
    ('1.2e-20', 1.0)
    """
    return float(stats.hypergeom.sf(window_hits - 1, n + m, reference_hits + window_hits, m))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having asked about all of them (Benjamini & Hochberg 1995): reject below alpha.

    >>> benjamini_hochberg([0.001, 0.02, 0.9])
    [0.003, 0.03, 0.9]
    """
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(p_values, method="bh")]


def _distance(reference: NumericSketch, window: NumericSketch) -> float:
    retained = [value for sketch in (reference, window) for value, _ in sketch.quantiles]
    points: npt.NDArray[np.float32] = np.unique(np.array(retained, dtype=np.float32))
    # `get_cdf` answers for every point, and once more for infinity.
    cdfs = [np.array(sketch.quantiles.get_cdf(points, True))[:-1] for sketch in (reference, window)]
    return float(np.abs(cdfs[0] - cdfs[1]).max())
