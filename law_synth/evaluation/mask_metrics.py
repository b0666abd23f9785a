"""What is measured of one image and one mask.

A metric is one entry of `JUDGED` or `UNJUDGED`. From there it comes into per_case.csv, evaluation.json and
the table on the screen: for own and shuffled masks, and with several regions for each region, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from law_synth.evaluation.distances import contrast
from law_synth.judging.agreement import MEAN, overlaps, region_masks
from law_synth.view.slices import SliceView

SHUFFLED = "_shuffled"  # in the names of columns: measured with the mask of another image
LESION_RATIO = "lesion_ratio"  # column of the mask's share of the image


@dataclass(frozen=True)
class MaskedImage:
    """An image and a region of its mask, or of another mask."""

    image: np.ndarray
    """uint8 (H, W, 3)."""
    inside: np.ndarray
    """Where the region is, bool (H, W)."""
    overlaps: dict[str, float]
    """Dice and IoU of the region and what the judge finds; empty where there is no judge."""


@dataclass(frozen=True)
class MaskMetric:
    """One number of an image and a mask."""

    column: str
    """Name of its column in per_case.csv."""
    name: str
    """Name of its mean in evaluation.json and on the screen."""
    measure: Callable[[MaskedImage], float]
    """Returns NaN where it is not defined."""
    protocol: str
    """What it is, in words."""


JUDGED = (
    MaskMetric("dice", "mDice", lambda one: one.overlaps["Dice"], "Dice of mask and prediction"),
    MaskMetric("iou", "mIoU", lambda one: one.overlaps["IoU"], "IoU of mask and prediction"),
)
"""The metrics that need a judge."""

UNJUDGED = (
    MaskMetric(
        "contrast",
        "contrast",
        lambda one: contrast(one.image, one.inside),
        "Euclidean RGB distance (0 to 1.73) of the mean colours inside the mask and in a ring around it, a "
        "tenth of the equivalent diameter wide, at least 2 px",
    ),
)
"""The metrics of image and mask alone."""

JUDGED_COLUMNS, UNJUDGED_COLUMNS = (
    tuple(metric.column + suffix for suffix in ("", SHUFFLED) for metric in metrics)
    for metrics in (JUDGED, UNJUDGED)
)
COLUMNS = (LESION_RATIO, *UNJUDGED_COLUMNS, *JUDGED_COLUMNS)


def column_names(regions: Iterable[str]) -> tuple[str, ...]:
    """`COLUMNS`, and of several regions the same for each: `dice_kidney`, `dice_shuffled_kidney`."""
    return (*COLUMNS, *(f"{name}_{region}" for region in several(regions) for name in COLUMNS))


def several(regions: Iterable[str]) -> tuple[str, ...]:
    """The regions to tell apart: none where there is only one."""
    names = tuple(regions)
    return names if len(names) > 1 else ()


def measure_mask(
    view: SliceView, image: np.ndarray, mask: np.ndarray, found: np.ndarray | None, suffix: str = ""
) -> dict[str, float]:
    """Column -> value for one image and one mask, with `suffix` in the names.

    Args:
        image: uint8 (H, W, 3).
        mask: class numbers (H, W).
        found: the class numbers (H, W) that a judge finds in the image.
    """
    regions = region_masks(mask, view)
    masks = {"": mask > 0} | {f"_{name}": regions[name] for name in several(regions)}
    scores = {} if found is None else overlaps(found, mask, view)
    row = {}
    for region, inside in masks.items():
        one = MaskedImage(image, inside, scores.get(region[1:] or MEAN, {}))
        row[f"{LESION_RATIO}{suffix}{region}"] = float(inside.mean())
        for metric in UNJUDGED if found is None else (*UNJUDGED, *JUDGED):
            row[f"{metric.column}{suffix}{region}"] = metric.measure(one)
    return row
