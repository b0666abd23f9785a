"""Means, paired differences, intervals and tests of an experiment's scores, label by label; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_order.bootstrap import interval, mean_over_cases, resampled_means
from nnunet_order.comparing.scores import CaseScores, nan_mean
from nnunet_order.metrics import MEANS

ALL = "all"
STRATA = {
    "lesion < 1 %": lambda share: (share > 0) & (share < 0.01),
    "lesion 1-10 %": lambda share: (share >= 0.01) & (share <= 0.1),
    "lesion > 10 %": lambda share: share > 0.1,
}  # of the image; no lesion, and NaN, an unknown size, are in none
COMPARED = ("mDice", "mIoU")
LEVEL = 0.05  # of intervals and tests

Shares = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings and cases, or the difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float
    trainings: int
    cases: int
    groups: int
    """Patients or videos that the cases are of; what the interval resamples."""


@dataclass(frozen=True)
class Score:
    """The mean of one arm on one test set, or on a stratum of it by lesion size."""

    trainer: str
    test_set: str
    label: str
    stratum: str
    arm: str
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference, paired by fold, seed and case."""

    trainer: str
    test_set: str
    label: str
    stratum: str
    arm: str
    metric: str
    estimate: Estimate
    p_value: float
    """Two-sided Wilcoxon signed-rank test of the groups' differences, see `case_gains`."""
    p_holm: float
    """Holm-corrected over the arms of a trainer, test set, label, stratum and metric."""

    @property
    def distinguishable(self) -> bool:
        """The interval leaves out 0, and so does the corrected test.

        Never with one training per arm: two trainings on the same cases differ, too, case by case.
        """
        apart = bool(self.estimate.low > 0 or self.estimate.high < 0) and self.p_holm < LEVEL
        return apart and self.estimate.trainings > 1


def estimate(values: np.ndarray, groups: np.ndarray, minus: np.ndarray | None = None) -> Estimate | None:
    """Estimate of the mean of (trainings, cases, labels), less that of `minus`; None without a single number.

    The mean is `metrics.mean_over_cases`, the interval that of `metrics.resampled_means`. NaN is left out: a
    case without anything to find, or a training that has not seen it.

    Args:
        groups: (cases,), the patient or video of each; the interval is over them.
        minus: what to compare with, on the same trainings and cases.
    """
    sides = [values] if minus is None else [values, minus]
    known = np.any([np.isfinite(side).any(axis=2) for side in sides], axis=0)
    rows, seen = known.any(axis=1), known.any(axis=0)
    if not rows.any():
        return None
    sides, groups = [side[rows][:, seen] for side in sides], groups[seen]
    mean, *less = (mean_over_cases(side) for side in sides)
    samples, *less_samples = (resampled_means(side, groups=groups) for side in sides)
    low, high = interval(samples - sum(less_samples))
    return Estimate(mean - sum(less), low, high, *sides[0].shape[:2], len(np.unique(groups)))


def scores(scored: Sequence[CaseScores], shares: Shares, groups: Mapping[str, str]) -> list[Score]:
    """All means.

    Args:
        shares: label -> case -> its share of the image, for the strata.
        groups: case -> its patient or video; a case that is not in it is its own.
    """
    return [
        Score(one.trainer, one.test_set, one.label, stratum, arm, metric, found)
        for one in scored
        for stratum, chosen in strata(one.cases, shares.get(one.label, {})).items()
        for arm, values in one.values.items()
        for metric, column in MEANS.items()
        if stratum == ALL or metric in COMPARED
        if (found := estimate(values[column][:, chosen], groups_of(one, groups)[chosen])) is not None
    ]


def differences(
    scored: Sequence[CaseScores], shares: Shares, groups: Mapping[str, str], reference: str
) -> list[Difference]:
    """All differences to the reference arm, where it is there; arguments as of `scores`."""
    return [
        difference
        for one in scored
        if reference in one.values
        for stratum, chosen in strata(one.cases, shares.get(one.label, {})).items()
        for metric in COMPARED
        for difference in _compare(one, stratum, chosen, groups_of(one, groups), metric, reference)
    ]


def groups_of(scored: CaseScores, groups: Mapping[str, str]) -> np.ndarray:
    """(cases,), the patient or video of each."""
    return np.array([groups.get(case, case) for case in scored.cases])


def strata(cases: Sequence[str], shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Stratum -> which cases belong to it, boolean; all cases first, empty strata left out."""
    share = np.array([shares.get(case, np.nan) for case in cases])
    chosen = {name: belongs(share) for name, belongs in STRATA.items()}
    return {ALL: np.ones(len(cases), bool)} | {name: some for name, some in chosen.items() if some.any()}


def case_gains(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(cases,), how much better an arm's overlap is: the mean over labels, then trainings.

    A label that neither arm nor truth has of a case is left out (NaN). One that an arm alone has found where
    there is nothing counts as 0 against 1: the other rightly found none.

    Args:
        values: (trainings, cases, labels), Dice or IoU; `reference` likewise.
    """
    either = np.isfinite(values) | np.isfinite(reference)
    rightly_empty = [np.where(either & np.isnan(side), 1.0, side) for side in (values, reference)]
    return nan_mean(nan_mean(np.subtract(*rightly_empty), axis=2), axis=0)


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean of the (cases,) of each group; NaN is left out, and where nothing is left, the mean is NaN."""
    return np.array([nan_mean(values[groups == group], axis=0) for group in np.unique(groups)])


def signed_rank(values: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test that differences are symmetric about 0."""
    from scipy.stats import wilcoxon

    values = values[np.isfinite(values)]
    return float(wilcoxon(values).pvalue) if np.any(values) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def _compare(
    scored: CaseScores, stratum: str, chosen: np.ndarray, groups: np.ndarray, metric: str, reference: str
) -> list[Difference]:
    found, p_values = {}, []
    for arm in scored.values:
        if arm == reference:
            continue
        pair = [side[:, chosen] for side in scored.pair(arm, reference, MEANS[metric])]
        mean = estimate(pair[0], groups[chosen], minus=pair[1])
        if mean and np.isfinite(mean.value):  # neither is, where one arm found nothing in images of nothing
            found[arm] = mean
            p_values.append(signed_rank(group_means(case_gains(*pair), groups[chosen])))
    corrected = holm(p_values)
    return [
        Difference(scored.trainer, scored.test_set, scored.label, stratum, arm, metric, mean, p_value, p_holm)
        for (arm, mean), p_value, p_holm in zip(found.items(), p_values, corrected, strict=True)
    ]
