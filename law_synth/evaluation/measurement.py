"""One number of `law-synth evaluate`, and means over images with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_order.bootstrap import UNITS, interval, mean_over_cases, resampled_means

BOOTSTRAP = f"interval: 95 %, percentile bootstrap over {UNITS}; a synthetic image is of its mask's"


@dataclass(frozen=True)
class Measurement:
    """One number of the table."""

    section: str
    name: str
    images: str
    """The images that were measured: `synthetic`, or real ones for scale."""
    against: str
    """What they are compared with, or which statistic this is."""
    value: float
    n: dict[str, int]
    """Number of images of each set that enters."""
    protocol: str
    low: float | None = None
    high: float | None = None


def mean_measurement(
    section: str,
    name: str,
    images: str,
    against: str,
    values: np.ndarray,
    groups: Sequence[str],
    n: dict[str, int],
    protocol: str,
    seed: int,
) -> Measurement:
    """A mean over images with its bootstrap interval; NaN values are left out.

    Args:
        values, groups: (images,), the latter the patient or video of each.
    """
    known = np.isfinite(values)
    values, groups = values[known, None], np.array(groups)[known]
    low, high = interval(resampled_means(values, seed, groups=groups))
    return Measurement(section, name, images, against, mean_over_cases(values), n, protocol, low, high)


def mean_measurements(
    section: str,
    name: str,
    images: str,
    parts: Mapping[str, np.ndarray],
    groups: Sequence[str],
    protocol: str,
    seed: int,
) -> list[Measurement]:
    """`mean_measurement` of each part that holds a number, with the count of its images."""
    measurements = []
    for against, values in parts.items():
        if count := int(np.isfinite(values).sum()):
            n = {images: count}
            measurements.append(
                mean_measurement(section, name, images, against, values, groups, n, protocol, seed)
            )
    return measurements
