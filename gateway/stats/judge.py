"""From a reference and a window to a verdict: every feature tested, adjusted together, and remembered.

A feature warns or drifts only if the difference is significant after Benjamini-Hochberg across the window *and* the
effect is above its floor. One drifting window is a warning; drift now and in 2 of the last 3 windows is an alarm.
A feature with too few values to have shown an alarming shift is "insufficient", which is not "ok".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.stats.drift import (
    ChiSquare,
    KolmogorovSmirnov,
    StabilityIndex,
    benjamini_hochberg,
    chi_square,
    excess_p,
    kolmogorov_smirnov,
    population_stability,
)
from gateway.stats.sketch import CategoricalSketch, FeatureSketch, NumericSketch, WindowSketch
from gateway.stats.verdict import DEFAULT_THRESHOLDS, FeatureVerdict, State, Status, Thresholds, Verdict

MIN_VALUES = 30
"""On either side; below it the asymptotic p-values mean nothing."""


@dataclass(frozen=True, slots=True)
class Share:
    """How often something rare happened on both sides, and the p-value that it became more frequent."""

    what: str
    before: float
    now: float
    p: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Everything measured about one feature; None where there were too few values to measure."""

    name: str
    sketch: FeatureSketch
    shares: tuple[Share, ...]
    ks: KolmogorovSmirnov | None = None
    psi: StabilityIndex | None = None
    chi: ChiSquare | None = None

    @property
    def p(self) -> float | None:
        """Of the main test."""
        test = self.ks or self.chi
        return test.p if test else None


def judge(
    model: str,
    version: str,
    reference: WindowSketch,
    window: WindowSketch,
    *,
    opened: float,
    closed: float,
    previous: Verdict | None = None,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> Verdict:
    """The verdict on one window. Raises `ValueError` if the window has other fields than the reference."""
    if reference.fields.keys() != window.fields.keys():
        raise ValueError("the window has other fields than the reference")
    findings = [measure(name, reference.fields[name], window.fields[name]) for name in reference.fields]
    adjusted = _adjust([finding.p for finding in findings])
    adjusted_shares = iter(benjamini_hochberg([share.p for finding in findings for share in finding.shares]))
    features, reasons = [], []
    for finding, p in zip(findings, adjusted, strict=True):
        share_ps = [next(adjusted_shares) for _ in finding.shares]
        flags = previous.flags_of(finding.name) if previous else ()
        feature, why = conclude(finding, p, share_ps, flags, thresholds)
        features.append(feature)
        reasons += why
    status = overall(features, thresholds)
    if status is Status.INSUFFICIENT:
        reasons.append(f"{window.rows} rows against a reference of {reference.rows} cannot show an alarming shift")
    return Verdict(
        model=model,
        version=version,
        status=status,
        opened=opened,
        closed=closed,
        rows=window.rows,
        reference_rows=reference.rows,
        features=tuple(features),
        reasons=tuple(reasons),
    )


def measure(name: str, reference: FeatureSketch, window: FeatureSketch) -> Finding:
    """All tests of one feature that its number of values permits."""
    shares = _shares(reference, window)
    if min(reference.count, window.count) < MIN_VALUES:
        return Finding(name, window, shares)
    if isinstance(reference, NumericSketch) and isinstance(window, NumericSketch):
        psi = population_stability(reference.counts, window.counts)
        return Finding(name, window, shares, ks=kolmogorov_smirnov(reference, window), psi=psi)
    return Finding(name, window, shares, chi=chi_square(reference.counts, window.counts))


def conclude(
    finding: Finding, adjusted_p: float | None, share_ps: Sequence[float], flags: tuple[bool, ...], limits: Thresholds
) -> tuple[FeatureVerdict, list[str]]:
    """The feature's state and why. `flags` are those of the windows before this one."""
    effects = [*_effects(finding, adjusted_p, limits), *_rises(finding, share_ps, limits)]
    states = [state for state, _ in effects]
    if State.DRIFT in states:
        state = State.DRIFT
    elif State.WARNING in states:
        state = State.WARNING
    else:
        state = State.INSUFFICIENT if _is_blind(finding, limits) else State.OK
    if state is not State.INSUFFICIENT:
        # A window that could not be judged says nothing, so it does not push an older one out of memory either.
        flags = (*flags, state is State.DRIFT)[-limits.memory :]
    suffix = f"; drift in {sum(flags)} of the last {len(flags)} windows" if state is State.DRIFT else ""
    reasons = [f"{finding.name}: {text}{suffix}" for effect, text in effects if effect is not State.OK]
    return _document(finding, state, adjusted_p, flags), reasons


def overall(features: Sequence[FeatureVerdict], thresholds: Thresholds) -> Status:
    """Alarm if a feature drifts now and persistently, else the loudest of what is left."""
    if any(f.state is State.DRIFT and sum(f.flags) >= thresholds.persistence for f in features):
        return Status.ALARM
    if any(f.state in {State.DRIFT, State.WARNING} for f in features):
        return Status.WARNING
    return Status.OK if any(f.state is State.OK for f in features) else Status.INSUFFICIENT


def _effects(finding: Finding, adjusted_p: float | None, limits: Thresholds) -> list[tuple[State, str]]:
    if adjusted_p is None or adjusted_p >= limits.alpha:
        return []
    end = f"adjusted p {adjusted_p:.1e}, n {finding.sketch.count}"
    if finding.chi is not None:
        v = finding.chi.cramers_v
        state, floor = _grade(v, limits.cramers_v_warning, limits.cramers_v_alarm)
        return [(state, f"Cramer's V {v:.2f} (floor {floor:.2f}), {end}")]
    effects = []
    if finding.ks is not None:
        state, floor = _grade(finding.ks.distance, limits.ks_warning, limits.ks_alarm)
        effects.append((state, f"KS distance {finding.ks.distance:.2f} (floor {floor:.2f}), {end}"))
    if finding.psi is not None and finding.psi.raw > finding.psi.noise_limit:
        state, floor = _grade(finding.psi.adjusted, limits.psi_warning, limits.psi_alarm)
        effects.append((state, f"PSI {finding.psi.adjusted:.2f} (floor {floor:.2f}), {end}"))
    return effects


def _rises(finding: Finding, share_ps: Sequence[float], limits: Thresholds) -> list[tuple[State, str]]:
    rises = []
    for share, p in zip(finding.shares, share_ps, strict=True):
        if p < limits.alpha and share.now >= 2 * share.before:
            state, _ = _grade(share.now - share.before, limits.share_warning, limits.share_alarm)
            rises.append((state, f"{share.what} {share.before:.1%} -> {share.now:.1%}, adjusted p {p:.1e}"))
    return rises


def _grade(effect: float, warning: float, alarm: float) -> tuple[State, float]:
    """The state, and the floor that the effect passed or missed."""
    if effect >= alarm:
        return State.DRIFT, alarm
    return (State.WARNING if effect >= warning else State.OK), warning


def _is_blind(finding: Finding, limits: Thresholds) -> bool:
    """Too few values: even a shift of alarming size would not have been significant."""
    if finding.ks is not None:
        return finding.ks.minimum_detectable > limits.ks_alarm
    return finding.chi is None or (finding.chi.cells > 1 and finding.chi.minimum_detectable > limits.cramers_v_alarm)


def _shares(reference: FeatureSketch, window: FeatureSketch) -> tuple[Share, ...]:
    totals = reference.count + reference.missing, window.count + window.missing
    shares = [_share("missing values", reference.missing, totals[0], window.missing, totals[1])]
    if isinstance(reference, CategoricalSketch) and isinstance(window, CategoricalSketch):
        shares.append(_share("unseen values", reference.unseen, totals[0], window.unseen, totals[1]))
    return tuple(shares)


def _share(what: str, before: int, n: int, now: int, m: int) -> Share:
    if min(n, m) < MIN_VALUES:
        return Share(what, 0.0, 0.0, 1.0)
    return Share(what, before / n, now / m, excess_p(before, n, now, m))


def _adjust(p_values: Sequence[float | None]) -> list[float | None]:
    """Benjamini-Hochberg over the tests that took place."""
    adjusted = iter(benjamini_hochberg([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _document(finding: Finding, state: State, adjusted_p: float | None, flags: tuple[bool, ...]) -> FeatureVerdict:
    sketch, test = finding.sketch, finding.ks or finding.chi
    rows = max(1, sketch.count + sketch.missing)
    return FeatureVerdict(
        name=finding.name,
        kind=sketch.kind,
        state=state,
        n=sketch.count,
        missing_rate=sketch.missing / rows,
        unseen_rate=sketch.unseen / rows if isinstance(sketch, CategoricalSketch) else None,
        ks=finding.ks.distance if finding.ks else None,
        psi=finding.psi.adjusted if finding.psi else None,
        cramers_v=finding.chi.cramers_v if finding.chi else None,
        p=finding.p,
        adjusted_p=adjusted_p,
        minimum_detectable=test.minimum_detectable if test else None,
        flags=flags,
    )
