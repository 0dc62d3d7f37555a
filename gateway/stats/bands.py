"""Whole distributions, compared at every look: do canary and control answer alike, are they equally fast.

An anytime-valid form of the band that Dvoretzky, Kiefer & Wolfowitz put around an empirical distribution function. It
is wide, which suits what it is for: a difference of shape holds a rollout until a person has looked, and a better model
is supposed to differ.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

MIN_VALUES = 100
"""From so many values on the band holds."""
AMPLITUDE = 0.85
"""Of the law of the iterated logarithm; the theorem wants more than 1/sqrt(2)."""


def dkw_radius(n: int, alpha: float) -> float:
    """Half height of a band that holds the whole distribution function at every n >= 100, with probability 1 - alpha.

    r(n) = 0.85 sqrt((ln(1 + ln(n / 100)) + C) / n) (Howard & Ramdas 2022, Bernoulli 28(3), arXiv 1906.09712, theorem
    2). 1, which says nothing, for smaller n.

    >>> round(dkw_radius(1_000, 0.05), 6), dkw_radius(99, 0.05)
    (0.082048, 1.0)
    """
    if n < MIN_VALUES:
        return 1.0
    return min(1.0, AMPLITUDE * math.sqrt((math.log1p(math.log(n / MIN_VALUES)) + _constant(alpha)) / n))


def largest_by_chance(canary: int, control: int, alpha: float, sketch_error: float = 0.0) -> float:
    """The KS distance that two samples of the same distribution never exceed at any look, with probability 1 - alpha.

    Each band has half of alpha. `sketch_error` is the rank error of both sketches together
    (`stats.drift.kolmogorov_smirnov` gives distance and error).

    >>> round(largest_by_chance(1_800, 16_200, 0.05), 4)
    0.0849
    """
    return min(1.0, dkw_radius(canary, alpha / 2) + dkw_radius(control, alpha / 2) + sketch_error)


def ks_of_histograms(canary: npt.ArrayLike, control: npt.ArrayLike) -> float:
    """KS distance of two histograms on the same bins, each with a count: never more than that of the values.

    >>> ks_of_histograms([10, 10, 0], [5, 5, 10])
    0.5
    """
    shares = [np.cumsum(counts) / np.sum(counts) for counts in (canary, control)]
    return float(np.abs(shares[0] - shares[1]).max())


@lru_cache(maxsize=64)
def _constant(alpha: float) -> float:
    """C of theorem 2: the least with inf_eta 4 exp(-g^2 C) (1 + 1 / ((g^2 - 1) ln eta)) <= alpha.

    Here g^2 = 2 / eta (A - sqrt(2 (eta - 1) / C))^2, over eta in (1, 2 A^2) with g^2 > 1.
    """
    low, high = 1.0, 1_000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _error(middle) <= alpha else (middle, high)
    return high


def _error(constant: float) -> float:
    eta = np.linspace(1, 2 * AMPLITUDE**2, 5_002)[1:-1]
    root = np.maximum(0.0, AMPLITUDE - np.sqrt(2 * (eta - 1) / constant))
    squared = 2 / eta * root**2
    eta, squared = eta[squared > 1], squared[squared > 1]
    errors = 4 * np.exp(-squared * constant) * (1 + 1 / ((squared - 1) * np.log(eta)))
    return float(errors.min(initial=np.inf))
