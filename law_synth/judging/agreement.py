"""How well the mask that a segmenter finds in an image agrees with the mask that the image was made from."""

from __future__ import annotations

import numpy as np

from law_synth.view.slices import SliceView
from nnunet_order.metrics import label_metrics

MEAN = "mean"  # beside the names of the data set's regions
OVERLAPS = ("Dice", "IoU")


def agreement(found: np.ndarray, truth: np.ndarray, view: SliceView) -> dict[str, float]:
    """Dice of two masks of class numbers (Y, X): of each region of the data set, and their `MEAN`.

    NaN where a region is in neither mask; the mean is over the others, NaN where there is none.
    """
    return {name: scores["Dice"] for name, scores in overlaps(found, truth, view).items()}


def overlaps(found: np.ndarray, truth: np.ndarray, view: SliceView) -> dict[str, dict[str, float]]:
    """As `agreement`: name -> Dice and IoU."""
    labels = view.classes.labels
    scores = label_metrics(labels(truth), labels(found), view.dataset.regions)
    table = {name: {metric: row[metric] for metric in OVERLAPS} for name, row in scores.items()}
    return table | {MEAN: {metric: _mean([row[metric] for row in table.values()]) for metric in OVERLAPS}}


def region_masks(mask: np.ndarray, view: SliceView) -> dict[str, np.ndarray]:
    """Mask of class numbers -> name of each region of the data set -> where it lies, boolean."""
    labels = view.classes.labels(mask)
    return {name: np.isin(labels, values) for name, values in view.dataset.regions.items()}


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
