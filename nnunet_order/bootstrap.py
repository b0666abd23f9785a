"""Means over cases and their bootstrap intervals; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 5000  # of the bootstrap
UNITS = "patients or videos (groups.json) with all their images, images without one taken as independent"


def mean_over_cases(values: np.ndarray) -> float:
    """Foreground mean of (cases, labels) or (trainings, cases, labels): per label, then over the labels.

    Per label over all cases, and trainings, without NaN. The order is nnU-Net's
    (`evaluate_predictions.compute_metrics_on_folder`); a label that no case has is left out.
    """
    trainings = values.reshape(-1, *values.shape[-2:])
    ones = np.ones((1, len(trainings))), np.ones((1, trainings.shape[1]))
    return float(_weighted_mean(*ones, trainings)[0])


def resampled_means(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, groups: Sequence[str] | None = None
) -> np.ndarray:
    """`mean_over_cases` of bootstrap samples of the cases, and of the trainings: -> (resamples,).

    The same seed draws the same cases and trainings, so that the difference of two calls is a paired
    bootstrap. One training counts as fixed: then the spread is that of the cases alone. Of one group, or one
    case, nothing is known about the spread: all NaN.

    Args:
        values: (cases, labels) or (trainings, cases, labels); NaN is left out.
        groups: (cases,), the patient or video of each case; whole groups are drawn (see `draw_cases`).
    """
    trainings = values.reshape(-1, *values.shape[-2:])
    generator = np.random.default_rng(seed)
    of_cases = draw_cases(generator, trainings.shape[1], resamples, groups)
    if of_cases is None:
        return np.full(resamples, np.nan)
    number = len(trainings)
    of_trainings = generator.multinomial(number, np.full(number, 1 / number), size=resamples)
    return _weighted_mean(of_trainings, of_cases, trainings)


def draw_cases(
    generator: np.random.Generator, cases: int, resamples: int, groups: Sequence[str] | None = None
) -> np.ndarray | None:
    """How often each bootstrap sample holds each case, (resamples, cases); None with fewer than two groups.

    Cases of one group, such as slices of a patient or frames of a video, are alike. Drawn one by one they
    would count as news that they are not, and intervals would be too narrow; so a group is drawn with all its
    cases (the cluster bootstrap; Field and Welsh, J. R. Stat. Soc. B 69, 2007).
    """
    group = np.arange(cases) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = len(np.unique(group))
    if number < 2:
        return None
    return generator.multinomial(number, np.full(number, 1 / number), size=resamples)[:, group]


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval of `resampled_means`, or of the difference of two."""
    low, high = np.nanpercentile(samples, [2.5, 97.5]) if np.isfinite(samples).any() else (np.nan, np.nan)
    return float(low), float(high)


def with_interval(column: str, value: float, samples: np.ndarray) -> dict[str, float]:
    """Value and `interval` as three columns of a table."""
    low, high = interval(samples)
    return {column: value, f"{column}_low": low, f"{column}_high": high}


def _weighted_mean(of_trainings: np.ndarray, of_cases: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of (trainings, cases, labels) -> (samples,); each pair is counted as often as both were drawn.

    Args:
        of_trainings: (samples, trainings), how often a sample holds each.
        of_cases: (samples, cases).
    """
    of_cases = of_cases.astype(float)
    total, number = (
        sum(drawn[:, None] * (of_cases @ part) for drawn, part in zip(of_trainings.T, parts, strict=True))
        for parts in (np.nan_to_num(values), np.isfinite(values).astype(float))
    )  # (samples, labels)
    labels = (number > 0).sum(axis=1)
    of_labels = np.divide(total, number, out=np.zeros_like(total), where=number > 0)
    return np.divide(of_labels.sum(axis=1), labels, out=np.full(len(labels), np.nan), where=labels > 0)
