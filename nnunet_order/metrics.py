"""Overlap and boundary metrics of one image; no I/O. `bootstrap` has their means and intervals.

The boundary distances are a dozen lines on SciPy because neither library we tried serves here
(measured): DeepMind's `surface-distance-based-measures` (0.1, 2022) raises on an empty mask under NumPy 2
and on every mask under NumPy 1.24-1.26; MONAI 1.6 gives our numbers to float32, but NaN for HD95 where one
mask is empty, needs torch >= 2.8, and its import costs every worker process 6 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A number of one case, and how its mean is named and shown in CSV files, on screens and in reports."""

    name: str
    """Its column in per_case.csv, and its key in `binary_metrics`."""
    mean: str
    """The name of its mean in summary.csv, on screens and in reports."""
    scale: float
    """The factor by which people see it multiplied: 100 for a share in percent."""
    meaning: str
    """A sentence for the readers of a report."""


METRIC_TABLE = (
    Metric("Dice", "mDice", 100, "Twice the overlap of truth and prediction by the sum of their areas."),
    Metric("IoU", "mIoU", 100, "The overlap of truth and prediction by the area that either of them covers."),
    Metric(
        "HD95",
        "HD95",
        1,
        "The larger of the two directed 95th percentiles of boundary distances. Lower is better.",
    ),
    Metric("NSD", "NSD", 100, "The share of both boundaries that lies within the tolerance of the other."),
)
METRICS = tuple(metric.name for metric in METRIC_TABLE)
MEANS = {metric.mean: metric.name for metric in METRIC_TABLE}  # name of the mean -> of a case's value
ROUNDING = 1e-6  # of spacings: NIfTI keeps 0.4 mm as 0.4000000060, and 5 pixels of it are 2 mm
FOREGROUND_MEAN = "foreground mean"  # the name of the mean over all labels, beside the labels' own names

EMPTY_MASKS = (
    "truth and prediction of a label both empty: the image is left out of that label's mean (NaN, as nnU-Net "
    "does); one of them empty: Dice = IoU = NSD = 0 and HD95 = the image diagonal"
)


def binary_metrics(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float] | None = None, tolerance: float = 2.0
) -> dict[str, float]:
    """Dice, IoU, HD95 and NSD of two boolean masks of one shape, 2D or 3D; all NaN if both are empty.

    `spacing` is the pixel size per axis (default 1), `tolerance` of the NSD is in its unit: pixels or mm.
    If one mask is empty: Dice = IoU = NSD = 0 and HD95 = the image diagonal, the largest error possible.
    """
    spacing = np.ones(truth.ndim) if spacing is None else np.asarray(spacing, float)
    size_truth, size_prediction = int(truth.sum()), int(prediction.sum())
    if size_truth + size_prediction == 0:
        return dict.fromkeys(METRICS, float("nan"))
    if size_truth == 0 or size_prediction == 0:
        diagonal = float(np.linalg.norm(spacing * truth.shape))
        return {**dict.fromkeys(METRICS, 0.0), "HD95": diagonal}
    overlap = int((truth & prediction).sum())
    to_prediction, to_truth = boundary_distances(truth, prediction, spacing)
    limit = tolerance * (1 + ROUNDING)
    within = (to_prediction <= limit).sum() + (to_truth <= limit).sum()
    return {
        "Dice": 2 * overlap / (size_truth + size_prediction),
        "IoU": overlap / (size_truth + size_prediction - overlap),
        "HD95": float(max(np.percentile(to_prediction, 95), np.percentile(to_truth, 95))),
        "NSD": float(within / (to_prediction.size + to_truth.size)),
    }


def boundary_distances(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each boundary pixel of one non-empty mask to the other's boundary, in units of `spacing`.

    A boundary pixel is a mask pixel with a face neighbour outside the mask or the image (MONAI,
    Metrics Reloaded). HD95 is the larger 95th percentile of the two; NSD the share within the tolerance
    (Nikolov et al., arXiv:1809.04430, counted in pixels).
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    # Outside the common bounding box both masks are empty: cropping changes no distance.
    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    edges = (mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (truth, prediction))
    of_truth, of_prediction = (np.argwhere(edge) * spacing for edge in edges)
    # A search tree, not a distance transform: 2 s instead of 15 s and no 3 GB for 100 slices of 512x512.
    return cKDTree(of_prediction).query(of_truth)[0], cKDTree(of_truth).query(of_prediction)[0]


def label_metrics(
    truth: np.ndarray,
    prediction: np.ndarray,
    regions: Mapping[str, Sequence[int]],
    ignore_label: int | None = None,
    spacing: Sequence[float] | None = None,
    tolerance: float = 2.0,
) -> dict[str, dict[str, float]]:
    """`binary_metrics` of each named label or region (its label values) of two label maps of one shape.

    Pixels that are `ignore_label` in the truth count in neither mask, as in nnU-Net's evaluation.
    """
    counted = np.ones(truth.shape, bool) if ignore_label is None else truth != ignore_label
    return {
        name: binary_metrics(
            np.isin(truth, values) & counted, np.isin(prediction, values) & counted, spacing, tolerance
        )
        for name, values in regions.items()
    }
