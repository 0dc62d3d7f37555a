"""Tests of a canary against its control that may be looked at after every event, for ever, and stopped at any time.

The rule of this file: everything is an e-process. E starts at 1, does not grow on average while the null hypothesis
holds, and so reaches 1/alpha with probability alpha at most, however often one looks (Ville 1939). Evidence is counts,
which add up in any order; the product over stages is exact for every schedule of weights that was fixed before the
traffic it applies to (Lindon, Sanden & Shirikian 2022, arXiv 2205.14762; Lindon & Malek 2022, arXiv 2011.03567).

What is counted, and by which share:

- **Weights**, where chance decides who answers: given that an event (an error, a timeout) happens, it is the canary's
  with a probability that depends on the weights and the ratio of the two rates alone. How many requests there were,
  and a shared incident that raises both rates, cancel out. Requests placed by a match rule must not be counted.
- **Units, each once**, where assignment is sticky: a unit is counted with its first event *since the rollout began*.
  Counted again in a later stage it is no new toss of the coin: who was the canary's at 5 % still is at 25 %.
- **Observed exposure**, where what is counted was thinned after the split, as labels are: a stage for each closed
  window, whose weight is the canary's share of the *labelled* rows in it. Given the counts of a window its events are
  hypergeometric, less variable than the binomial used here (Hoeffding 1963), so E holds at the ends of windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_RATIO = 20.0
"""The largest rate ratio, beyond the null's, that the mixture bets on."""
TYPICAL_RATIO = 2.0
"""The ratio at one standard deviation of the prior: doubled (or halved) rates are found the soonest."""
GRID_POINTS = 60
DIRICHLET_K = 100.0
"""How concentrated the sample-ratio test's alternative is around the planned shares."""
SAMPLE_RATIO_ALPHA = 0.001
"""A mismatch says that the experiment is broken, so it is declared at E >= 1000 only."""
DEAD_AFTER = 8
"""Failures in a row of a dead canary. Where both err at rate p, one run in p^8 (1-p)^8 is chance: at most 1.5e-5."""
MAX_RATE_RATIO = 1e4
MAX_ODDS = 1e9
"""Where intervals for a ratio of rates, and for the odds of a rate, end."""

_GRID: Floats = np.arange(1, GRID_POINTS + 1) / GRID_POINTS * math.log(MAX_RATIO)
_DENSITY: Floats = np.exp(-(_GRID**2) / (2 * math.log(TYPICAL_RATIO) ** 2))
_LOG_PRIOR: Floats = np.log(_DENSITY / _DENSITY.sum())
_BISECTIONS = 24
"""To seven digits of where they start, in logarithms."""
_HORIZON = 1e15
"""Events beyond this are "never"."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Events under constant weights. Raises `ValueError` if it cannot be.

    `weight` is the canary's share of the traffic of canary and control together, between 0 and 1; at 0 and 1 there is
    no concurrent control, and the stage says nothing.
    """

    weight: float
    canary: int
    control: int

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"a stage's weight is a share from 0 to 1, not {self.weight}")
        if not (self.canary >= 0 and self.control >= 0):
            raise ValueError(f"counts are 0 or more, not {self.canary} and {self.control}")


@dataclass(frozen=True, slots=True)
class EProcess:
    """An e-process as far as it was looked at, in natural logarithms: what it is, and the most it ever was.

    >>> process = EProcess().at(math.log(50)).at(math.log(10))
    >>> round(process.p_always, 9), process.rejects(0.02), process.rejects(0.01)
    (0.02, True, False)
    """

    log_e: float = 0.0
    max_log_e: float = 0.0

    def at(self, log_e: float) -> EProcess:
        """After one more look."""
        return EProcess(log_e, max(self.max_log_e, log_e))

    @property
    def p_always(self) -> float:
        """p-value that is valid at every look: min(1, 1 / max E)."""
        return math.exp(-self.max_log_e)

    def rejects(self, alpha: float) -> bool:
        """Whether E has ever reached 1/alpha."""
        return self.max_log_e >= -math.log(alpha)


@dataclass(frozen=True, slots=True)
class FailureRun:
    """How long the canary has done nothing but fail, from counts of successive windows.

    A run begins with a window in which it failed, and a window in which it succeeded once ends it. Give it units where
    assignment is sticky: one user whose every request fails is no dead canary.

    >>> FailureRun().after(3, 3, 60, 0).after(5, 5, 90, 0).is_dead()
    True
    >>> FailureRun().after(8, 8, 150, 1).is_dead(), FailureRun().after(9, 8, 150, 0).is_dead()
    (False, False)
    """

    failures: int = 0
    control_requests: int = 0
    control_failures: int = 0

    def after(
        self, canary_requests: int, canary_failures: int, control_requests: int, control_failures: int
    ) -> FailureRun:
        """With the next window's counts."""
        if canary_failures < canary_requests or not (self.failures or canary_failures):
            return FailureRun()
        return FailureRun(
            self.failures + canary_failures,
            self.control_requests + control_requests,
            self.control_failures + control_failures,
        )

    def is_dead(self, after: int = DEAD_AFTER) -> bool:
        """Whether `after` requests failed in a row while the control had as many, and none of them failed."""
        return self.failures >= after and self.control_requests >= after and not self.control_failures


def log_e(stages: Iterable[Stage], rho0: float = 1.0, *, worse: bool = True) -> float:
    """Logarithm of the evidence that the canary's event rate is more than `rho0` times the control's.

    With `worse=False`: less than `rho0` times, which at a margin such as 1.5 shows the canary to be non-inferior. Given
    an event in a stage with weight w, it is the canary's with probability p(rho) = w rho / (w rho + 1 - w). E is the
    likelihood ratio of rho = rho0 exp(+-g) to rho0, mixed over 60 values of g in (0, ln 20] with prior weights
    proportional to exp(-g^2 / (2 ln(2)^2)). It is a supermartingale for every rate ratio on the null's side of rho0.

    >>> round(math.exp(log_e([Stage(0.05, 5, 0)])), 1), round(math.exp(log_e([Stage(0.5, 235, 157)])))
    (152.6, 634)
    >>> round(math.exp(log_e([Stage(0.25, 250, 750)], 1.5, worse=False)))
    2453973
    """
    return float(_log_sum_exp(_LOG_PRIOR + _log_ratios(_with_control(stages), rho0, worse=worse)))


def log_e_batch(
    weights: npt.ArrayLike, canary: npt.ArrayLike, control: npt.ArrayLike, rho0: float = 1.0, *, worse: bool = True
) -> Floats:
    """`log_e` of many histories at once: weights of shape [stages] within (0, 1), counts of shape [..., stages]."""
    if not np.all((np.asarray(weights) > 0) & (np.asarray(weights) < 1)):
        raise ValueError(f"weights lie between 0 and 1, not {weights!r}")
    events = np.asarray(canary, dtype=np.float64)
    trials = events + np.asarray(control, dtype=np.float64)
    terms = _LOG_PRIOR + _bernoulli(events, trials, _canary_share(weights, rho0), _grid(above=worse))
    return _log_sum_exp(terms)


def log_e_rate(events: int, trials: int, bound: float, *, above: bool) -> float:
    """Logarithm of the evidence that a single variant's rate is above, or below, `bound`.

    The same mixture as `log_e`, over odds exp(+-g) times those of the bound. With `above=False` it shows a service that
    has next to no errors to be within an absolute margin, where a ratio of two rates needs more errors than there are.

    >>> [round(math.exp(log_e_rate(0, n, 0.002, above=False)), 1) for n in (1_000, 2_500, 4_000)]
    [2.4, 12.2, 83.5]
    """
    if not 0 <= events <= trials:
        raise ValueError(f"events are between 0 and the number of trials, not {events} of {trials}")
    if not 0 < bound < 1:
        raise ValueError(f"the bound of a rate lies between 0 and 1, not {bound}")
    return float(_log_sum_exp(_LOG_PRIOR + _rate_ratios(events, trials, bound, above=above)))


def log_mean_e(*log_es: float) -> float:
    """Of several e-processes against the same null, their mean, which is one too.

    >>> round(log_mean_e(math.log(59), 0.0, 0.0), 3) == round(math.log(61 / 3), 3)
    True
    """
    return float(_log_sum_exp(np.array(log_es))) - math.log(len(log_es))


def log_e_sample_ratio(stages: Iterable[tuple[Sequence[float], Sequence[int]]]) -> float:
    """Logarithm of the evidence that units were not assigned by the planned shares.

    Each stage is planned shares and counts by variant, in the same order, and multiplies (Lindon & Malek 2022,
    Dirichlet-multinomial): E = prod_i [G(k t_i + n_i) / G(k t_i) / t_i^n_i] G(k) / G(k + n), k = 100. Count each unit
    once where assignment is sticky, and count exactly: an estimate of distinct units that errs by 1 % is a mismatch.

    >>> round(math.exp(log_e_sample_ratio([((0.9, 0.1), (17_800, 2_200))])))
    3113
    """
    return math.fsum(_log_dirichlet_multinomial(shares, counts) for shares, counts in stages)


def rate_ratio(stages: Sequence[Stage]) -> float:
    """Estimated rate of the canary over that of the control, as Mantel & Haenszel (1959) pool strata.

    One event at parity is added to the counts, so that without any the estimate is 1.

    >>> rate_ratio([]), round(rate_ratio([Stage(0.05, 100, 950)]), 2)
    (1.0, 2.0)
    """
    counted = _with_control(stages)
    prior = counted[-1].weight * (1 - counted[-1].weight) if counted else 1.0
    canary = sum(stage.canary * (1 - stage.weight) for stage in counted)
    control = sum(stage.control * stage.weight for stage in counted)
    return (canary + prior) / (control + prior)


def ratio_interval(stages: Sequence[Stage], alpha: float) -> tuple[float, float]:
    """Rate ratios that neither side's test rejects at alpha/2: a confidence sequence, valid at every look.

    Ends at 0 and infinity where the counts do not bound it.

    >>> low, high = ratio_interval([Stage(0.5, 235, 157)], 0.05)
    >>> round(low, 3), round(high, 3)
    (1.084, 2.082)
    """
    level, largest = -math.log(alpha / 2), math.log(MAX_RATE_RATIO)
    low = _first(lambda rho: log_e(stages, math.exp(rho)) < level, -largest, largest)
    high = -_first(lambda rho: log_e(stages, math.exp(-rho), worse=False) < level, -largest, largest)
    return (math.exp(low) if low > -largest else 0.0, math.exp(high) if high < largest else math.inf)


def rate_interval(events: int, trials: int, alpha: float) -> tuple[float, float]:
    """Rates of a single variant that neither side rejects at alpha/2: a confidence sequence, valid at every look.

    >>> [round(end, 4) for end in (*rate_interval(0, 4_000, 0.05), *rate_interval(50, 1_000, 0.05))]
    [0.0, 0.0017, 0.0315, 0.0741]
    """
    if not trials:
        return 0.0, 1.0
    level, largest = -math.log(alpha / 2), math.log(MAX_ODDS)
    low = _first(lambda odds: log_e_rate(events, trials, _rate(odds), above=True) < level, -largest, largest)
    high = -_first(lambda odds: log_e_rate(events, trials, _rate(-odds), above=False) < level, -largest, largest)
    return (_rate(low) if low > -largest else 0.0, _rate(high) if high < largest else 1.0)


def requests_needed(
    stages: Sequence[Stage], requests: int, alpha: float, rho0: float = 1.0, *, worse: bool = True
) -> int | None:
    """About how many more requests until `log_e` reaches 1/alpha, as things go; None if never.

    `requests` is what came in these stages. By the estimated ratio rho, an event under the last stage's weight is the
    canary's with probability q = p(rho), and adds q log(p_k/p_0) + (1-q) log((1-p_k)/(1-p_0)) to the k-th term of the
    mixture, on average. So many events as the mixture of these lines needs, at the events per request seen (and one
    more, so that a quiet service has a forecast too).

    >>> requests_needed([Stage(0.05, 10, 95)], 20_000, 0.01, worse=True)
    43047
    >>> requests_needed([Stage(0.05, 10, 190)], 40_000, 0.05, 1.5, worse=False)
    139554
    """
    counted = _with_control(stages)
    if not counted:
        return None
    weight, grid = counted[-1].weight, _grid(above=worse)
    null, actual = (float(_canary_share(weight, rho)) for rho in (rho0, rate_ratio(counted)))
    growth = _bernoulli(np.array([actual]), np.ones(1), np.array([null]), grid)
    events = sum(stage.canary + stage.control for stage in counted)
    needed = _steps_to(_log_ratios(counted, rho0, worse=worse), growth, alpha)
    return None if needed is None else math.ceil(needed * max(requests, 1) / (events + 1))


def trials_needed(events: int, trials: int, bound: float, alpha: float, *, above: bool) -> int | None:
    """As `requests_needed`, for `log_e_rate`; in requests to this variant.

    >>> trials_needed(0, 1_000, 0.002, 0.05, above=False)
    3294
    """
    rate = (events + 0.5) / (trials + 1)
    growth = _bernoulli(np.array([rate]), np.ones(1), np.array([bound]), _grid(above=above))
    needed = _steps_to(_rate_ratios(events, trials, bound, above=above), growth, alpha)
    return None if needed is None else math.ceil(needed)


def _bernoulli(events: Floats, trials: Floats, null: Floats, theta: Floats) -> Floats:
    """Log likelihood ratios of odds exp(theta) times the null's, [..., stages] to [..., len(theta)].

    events theta - trials log(1 - p0 + p0 exp(theta)): with p0 = p(rho0) and theta = g this is the sum of
    log(p_k/p_0) over the canary's events and log((1-p_k)/(1-p_0)) over the control's.
    """
    cumulants = np.log1p(null[:, None] * np.expm1(theta))
    return np.asarray(events.sum(axis=-1)[..., None] * theta - trials @ cumulants, dtype=np.float64)


def _log_ratios(stages: Sequence[Stage], rho0: float, *, worse: bool) -> Floats:
    counts = np.array([(stage.weight, stage.canary, stage.control) for stage in stages], dtype=np.float64)
    weights, canary, control = counts.reshape(-1, 3).T
    return _bernoulli(canary, canary + control, _canary_share(weights, rho0), _grid(above=worse))


def _with_control(stages: Iterable[Stage]) -> list[Stage]:
    return [stage for stage in stages if 0 < stage.weight < 1]


def _rate_ratios(events: int, trials: int, bound: float, *, above: bool) -> Floats:
    return _bernoulli(np.array([events], float), np.array([trials], float), np.array([bound]), _grid(above=above))


def _grid(*, above: bool) -> Floats:
    return _GRID if above else -_GRID


def _canary_share(weights: npt.ArrayLike, rho: float) -> Floats:
    if not 0 < rho < math.inf:
        raise ValueError(f"a rate ratio is positive and finite, not {rho}")
    shares = np.asarray(weights, dtype=np.float64)
    return np.asarray(shares * rho / (shares * rho + 1 - shares))


def _rate(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _log_dirichlet_multinomial(shares: Sequence[float], counts: Sequence[int]) -> float:
    if len(shares) != len(counts) or min(counts, default=0) < 0 or min(shares, default=0) < 0:
        raise ValueError(f"a share and a count, 0 or more, for each variant, not {shares} and {counts}")
    if abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"planned shares add up to 1, not {sum(shares)}")
    if any(count and not share for share, count in zip(shares, counts, strict=True)):
        return math.inf
    pairs = [(share, count) for share, count in zip(shares, counts, strict=True) if share]
    return math.fsum(
        [
            *(math.lgamma(DIRICHLET_K * share + count) - math.lgamma(DIRICHLET_K * share) for share, count in pairs),
            *(-count * math.log(share) for share, count in pairs),
            math.lgamma(DIRICHLET_K) - math.lgamma(DIRICHLET_K + sum(counts)),
        ]
    )


def _steps_to(now: Floats, growth: Floats, alpha: float) -> float | None:
    """Steps until the mixture of the lines `now + steps growth` reaches 1/alpha."""

    def is_there(steps: float) -> bool:
        return float(_log_sum_exp(_LOG_PRIOR + now + steps * growth)) >= -math.log(alpha)

    if is_there(0.0):
        return 0.0
    steps = 1.0
    while not is_there(steps):
        steps *= 2
        if steps > _HORIZON:
            return None
    return _first(is_there, steps / 2, steps)


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds from some point on begins to, or `low`, or `high`."""
    if holds(low):
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_sum_exp(terms: Floats) -> Floats:
    peak = terms.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(terms - peak).sum(axis=-1)) + peak[..., 0])
