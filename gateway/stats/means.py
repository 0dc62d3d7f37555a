"""Always-valid comparison of means: log-latency, scores, losses, and proportions that are not rare.

The rule of this file: arms are compared within strata (the stages of a rollout, each with constant weights) and the
strata are pooled afterwards. Means of everything since the start would make the canary look better or worse than it is
whenever the weights and the load changed together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

TUNED_FOR = 5_000
"""Requests, split evenly, at which the interval is the narrowest that it can be; it is valid at every number."""
MIN_REQUESTS = 200
MIN_EXPECTED = 30.0
"""Of each arm, and events expected in the smaller: before that the central limit theorem cannot be relied on."""

HORIZON = 1e15
"""Times as many requests is "never"."""


@dataclass(frozen=True, slots=True)
class MeanArm:
    """Count, mean, and sum of squared differences from the mean; adds up exactly (Chan, Golub & LeVeque 1983).

    >>> MeanArm.of_values([1.0, 2.0]) + MeanArm.of_values([6.0])
    MeanArm(n=3, mean=3.0, m2=14.0)
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of_values(cls, values: npt.ArrayLike) -> MeanArm:
        """Of numbers, none of them NaN."""
        numbers = np.asarray(values, dtype=np.float64)
        if not numbers.size:
            return cls()
        mean = float(numbers.mean())
        return cls(numbers.size, mean, float(((numbers - mean) ** 2).sum()))

    @classmethod
    def of_sums(cls, n: int, total: float, squares: float) -> MeanArm:
        """Of a sum and a sum of squares; the mean should not be large beside the spread."""
        return cls(n, total / n, max(0.0, squares - total * total / n)) if n else cls()

    @classmethod
    def of_counts(cls, n: int, events: int) -> MeanArm:
        """Of `n` zeros and ones, `events` of them ones."""
        return cls.of_sums(n, events, events)

    def __add__(self, other: MeanArm) -> MeanArm:
        n = self.n + other.n
        if not n:
            return MeanArm()
        shift = other.mean - self.mean
        mean = self.mean + shift * other.n / n
        return MeanArm(n, mean, self.m2 + other.m2 + shift * shift * self.n * other.n / n)

    @property
    def variance(self) -> float:
        """Of one value; 0 for fewer than two."""
        return self.m2 / (self.n - 1) if self.n > 1 else 0.0


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """The means of canary and control, and what is known about their difference.

    An asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, arXiv 2103.06476): with
    rho^2 = (-2 ln a + ln(-2 ln a + 1)) / 5000 and s^2 = n SE^2, the half width at n is
    sqrt(2 s^2 (n rho^2 + 1) / (n rho)^2 ln(sqrt(n rho^2 + 1) / alpha)). One-sided, a = 2 alpha in rho^2, and the
    logarithm is ln(1 + sqrt(n rho^2 + 1) / (2 alpha)). Valid at every look from the start condition (`is_ready`) on.
    """

    canary: float
    canary_error: float
    """Standard error of the mean."""
    control: float
    control_error: float
    n: float
    """What both arms together would have to be, split evenly, to tell as much: 4 / (1/n_c + 1/n_b) over the strata."""

    @property
    def difference(self) -> float:
        """Canary less control."""
        return self.canary - self.control

    @property
    def standard_error(self) -> float:
        """Of the difference."""
        return math.hypot(self.canary_error, self.control_error)

    def half_width(self, alpha: float, *, one_sided: bool = False) -> float:
        """Of the confidence sequence, above and below the difference.

        >>> difference = MeanDifference(0.0, math.sqrt(1 / 5_000), 0.0, math.sqrt(1 / 5_000), 10_000)
        >>> round(difference.half_width(0.05), 4), round(difference.half_width(0.05, one_sided=True), 4)
        (0.0612, 0.056)
        """
        spread = self.n * _rho_squared(alpha, one_sided=one_sided)
        root = math.sqrt(spread + 1)
        logarithm = math.log1p(root / (2 * alpha)) if one_sided else math.log(root / alpha)
        return self.standard_error * math.sqrt(2 * (spread + 1) / spread * logarithm)

    def ratio_interval(self, alpha: float) -> tuple[float, float] | None:
        """Of canary over control: the ratios r for which canary - r control may be 0 (Fieller 1954).

        It holds 1 where the interval of the difference holds 0. None while the control's own mean may be 0.

        >>> [round(end, 3) for end in MeanDifference(1.1, 0.01, 1.0, 0.01, 10_000).ratio_interval(0.05)]
        [1.055, 1.147]
        """
        if not self.standard_error:
            return (self.canary / self.control,) * 2 if self.control else None
        factor = (self.half_width(alpha) / self.standard_error) ** 2
        square = self.control**2 - factor * self.control_error**2
        if square <= 0:
            return None
        product = self.canary * self.control
        rest = self.canary**2 - factor * self.canary_error**2
        root = math.sqrt(max(0.0, product * product - square * rest))
        return (product - root) / square, (product + root) / square

    def log_e(self, alpha: float, null: float = 0.0, *, worse: bool | None = None) -> float:
        """Logarithm of the evidence against a difference of `null`; it reaches 1/alpha where the half width does.

        Two-sided E = exp(t^2 n rho^2 / (2 (n rho^2 + 1))) / sqrt(n rho^2 + 1), t = (d - null) / SE. With `worse` the
        evidence that the difference is above `null` (True) or below (False): E = 2 (exp(...) - 1) / sqrt(n rho^2 + 1)
        if d lies on that side, else 0. `alpha` tunes rho.
        """
        spread = self.n * _rho_squared(alpha, one_sided=worse is not None)
        distance = self.difference - null
        if not self.standard_error:
            t = math.copysign(math.inf, distance) if distance else 0.0
        else:
            t = distance / self.standard_error
        exponent = t * t * spread / (2 * (spread + 1))
        scale = math.log(spread + 1) / 2
        if worse is None:
            return exponent - scale
        if not exponent or (t > 0) != worse:
            return -math.inf
        return math.log(2) + exponent + math.log(-math.expm1(-exponent)) - scale

    def requests_needed(self, requests: int, alpha: float, gap: float, *, one_sided: bool = False) -> int | None:
        """About how many more requests until the half width is below `gap`; None if never, as for a gap of 0.

        `requests` have come so far; the difference and the variances are taken to stay as they are.

        >>> difference = MeanDifference(0.0, math.sqrt(1 / 5_000), 0.0, math.sqrt(1 / 5_000), 10_000)
        >>> difference.requests_needed(10_000, 0.05, 0.0308)
        33833
        """
        if gap <= 0 or not self.n:
            return None

        def grown(factor: float) -> MeanDifference:
            root = math.sqrt(factor)
            return replace(
                self,
                canary_error=self.canary_error / root,
                control_error=self.control_error / root,
                n=self.n * factor,
            )

        low = high = 1.0
        while grown(high).half_width(alpha, one_sided=one_sided) > gap:
            low, high = high, high * 2
            if high > HORIZON:
                return None
        for _ in range(50):
            middle = (low + high) / 2
            is_below = grown(middle).half_width(alpha, one_sided=one_sided) <= gap
            low, high = (low, middle) if is_below else (middle, high)
        return math.ceil((high - 1) * requests)


def mean_difference(strata: Iterable[tuple[MeanArm, MeanArm]]) -> MeanDifference | None:
    """Of canary and control, pooled over strata; None if in no stratum both arms have two values.

    d = sum h_j d_j / sum h_j with h_j = n_c n_b / (n_c + n_b), the weights of Cochran (1954): sum h_j d_j is the sum of
    what each request adds, which is a martingale under the null whatever the load and the weights did meanwhile.

    >>> found = mean_difference([(MeanArm(100, 2.0, 99.0), MeanArm(100, 1.5, 99.0))])
    >>> found.difference, round(found.standard_error, 4), found.n
    (0.5, 0.1414, 200.0)
    """
    pairs = [(canary, control) for canary, control in strata if canary.n > 1 and control.n > 1]
    if not pairs:
        return None
    weights = np.array([canary.n * control.n / (canary.n + control.n) for canary, control in pairs])
    total = float(weights.sum())

    def pooled(arms: Sequence[MeanArm]) -> tuple[float, float]:
        means = np.array([arm.mean for arm in arms])
        squared_errors = np.array([arm.variance / arm.n for arm in arms])
        return float(weights @ means) / total, math.sqrt(weights**2 @ squared_errors) / total

    canaries, controls = zip(*pairs, strict=True)
    return MeanDifference(*pooled(canaries), *pooled(controls), 4 * total)


def is_ready(strata: Sequence[tuple[MeanArm, MeanArm]], *, is_proportion: bool = False) -> bool:
    """Whether there are enough values for a confidence sequence: 200 in each arm, and for a proportion 30 expected.

    Expected of the rarer of events and non-events in the smaller arm. Fewer, and a confidence sequence for rare events
    is wrong up to a third of the time (measured, docs/rollouts.md); `stats/sequential.py` is exact for them.
    """
    canary = sum((canary for canary, _ in strata), MeanArm())
    control = sum((control for _, control in strata), MeanArm())
    smaller = min(canary.n, control.n)
    rate = (canary + control).mean
    expected = min(rate, 1 - rate) * smaller if is_proportion else math.inf
    return smaller >= MIN_REQUESTS and expected >= MIN_EXPECTED


def _rho_squared(alpha: float, *, one_sided: bool) -> float:
    level = -2 * math.log(min(2 * alpha, 0.5) if one_sided else alpha)
    return (level + math.log(level + 1)) / TUNED_FOR
