"""Which generated images are kept: those that vary, follow their mask and copy no training image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from law_synth.judging.agreement import MEAN, agreement
from law_synth.judging.features import nearest, thumbnails, with_mirrored
from law_synth.judging.segmenter import Segmenter
from law_synth.view.places import Geometry
from law_synth.view.slices import Slice, SliceView

CONSTANT = 2  # grey levels from darkest to brightest in every channel, as rounding may leave
MANY = 200  # images that deserve a progress bar


class QualityFilter:
    """Judges images one by one and deterministically: `filter(image, mask, geometry)`."""

    def __init__(
        self,
        view: SliceView,
        references: tuple[Sequence[str], np.ndarray],
        max_similarity: float,
        segmenter: Segmenter | None = None,
        min_agreement: float = 0.0,
    ):
        """`references`: as `training_thumbnails` returns them."""
        self.view = view
        self.case_ids, self.thumbnails = references
        self.max_similarity = max_similarity
        self.segmenter, self.min_agreement = segmenter, min_agreement

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, geometry: Geometry | None = None
    ) -> tuple[str | None, dict]:
        """Image (Y, X, 3) in [0, 255], mask of class numbers (Y, X) -> why it is dropped (or None), scores.

        The scores are agreement (mean Dice of what the segmenter finds and the mask, over the data set's
        regions; 1 where both are empty), agreement_<region> for each region where there are several,
        similarity to the most similar training image (correlation of thumbnails, also of mirrored ones) and
        nearest_case. None stands for what was not measured, and for a region that is in neither mask.
        """
        scores = {"agreement": None, "similarity": None, "nearest_case": None}
        levels = np.rint(image).astype(np.uint8)
        if np.ptp(levels, axis=(0, 1)).max() <= CONSTANT:
            return "constant", scores
        indices, similarities = nearest(thumbnails(with_mirrored(levels)), self.thumbnails)
        best = int(similarities.argmax())
        scores["similarity"] = round(float(similarities[best]), 6)
        scores["nearest_case"] = self.case_ids[indices[best]]
        if self.segmenter is not None:
            scores |= _agreement_scores(self.segmenter.find(self.view, image, geometry), mask, self.view)
        if scores["similarity"] > self.max_similarity:
            return "near copy", scores
        if self.segmenter is not None and scores["agreement"] < self.min_agreement:
            return "agreement", scores
        return None, scores


def _agreement_scores(found: np.ndarray, mask: np.ndarray, view: SliceView) -> dict[str, float | None]:
    dice = agreement(found, mask, view)
    mean = dice.pop(MEAN)
    scores: dict[str, float | None] = {"agreement": 1.0 if math.isnan(mean) else round(mean, 6)}
    if len(dice) > 1:
        rounded = {name: None if math.isnan(value) else round(value, 6) for name, value in dice.items()}
        scores |= {f"agreement_{name}": value for name, value in rounded.items()}
    return scores


def training_thumbnails(view: SliceView, slices: Sequence[Slice]) -> tuple[list[str], np.ndarray]:
    """Case ids and thumbnails (N, 3072) of the images that the model has seen."""
    from rich.progress import track

    shown = track(slices, "reading training images", transient=True, disable=len(slices) < MANY)
    return [slice_.case for slice_ in slices], np.concatenate(
        [thumbnails([view.read_rgb(slice_)]) for slice_ in shown]
    )
