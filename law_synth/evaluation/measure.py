"""One number of `law-synth evaluate`, and means over images with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nnunet_order.metrics import interval, mean_over_cases, resampled_means

if TYPE_CHECKING:
    from law_synth.evaluation.findings import Findings

BOOTSTRAP = "interval: 95 %, percentile bootstrap over images taken as independent"


@dataclass(frozen=True)
class Measure:
    """One number of the table."""

    section: str
    name: str
    images: str
    """The images that were measured: `synthetic`, or real ones for scale."""
    against: str
    """What they are compared with, or which statistic it is."""
    value: float
    n: dict[str, int]
    """Number of images, per set that enters."""
    protocol: str
    low: float | None = None
    high: float | None = None


def mean_measure(
    section: str,
    name: str,
    images: str,
    against: str,
    values: np.ndarray,
    n: dict[str, int],
    protocol: str,
    seed: int,
) -> Measure:
    """A mean over images with its bootstrap interval; NaN values are left out."""
    low, high = interval(resampled_means(values[:, None], seed))
    return Measure(section, name, images, against, mean_over_cases(values[:, None]), n, protocol, low, high)


def mean_measures(
    section: str, name: str, images: str, parts: Mapping[str, np.ndarray], protocol: str, seed: int
) -> list[Measure]:
    """One mean for each part that holds a number, with the count of its images."""
    measures = []
    for against, values in parts.items():
        if count := int(np.isfinite(values).sum()):
            n = {images: count}
            measures.append(mean_measure(section, name, images, against, values, n, protocol, seed))
    return measures


def bootstrap_note(findings: Findings) -> str:
    """What the intervals are."""
    if findings.subject.synthetic.view.is_volumetric:
        return f"{BOOTSTRAP}, which slices of one volume are not: too narrow"
    return BOOTSTRAP
