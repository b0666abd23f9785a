"""Which generated images are kept: not constant, no near copy of a training image, and true to their mask."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw import RawDataset
from dataset_conversion.user_error import UserError
from law_synth.cases import read_rgb_case
from law_synth.evaluation.features import nearest, thumbnails, with_mirrored
from nnunet_order.metrics import binary_metrics

if TYPE_CHECKING:
    import torch

    from law_synth.cases import Fold
    from law_synth.evaluation.segmenter import Segmenter

CONSTANT = 2  # grey levels from darkest to brightest in every channel; a rounding error is no picture
CHECKPOINT = "checkpoint_final.pth"


class QualityFilter:
    """Judges images one by one, deterministically: `filter(image, mask)`."""

    def __init__(
        self,
        references: tuple[Sequence[str], np.ndarray],
        max_similarity: float,
        segmenter: Segmenter | None = None,
        min_agreement: float = 0.0,
    ):
        """`references`: as `training_thumbnails` returns them."""
        self.case_ids, self.thumbnails = references
        self.max_similarity = max_similarity
        self.segmenter, self.min_agreement = segmenter, min_agreement

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[str | None, dict]:
        """Image uint8 (Y, X, 3), mask of 0 and 1 (Y, X) -> why it is dropped (None: kept), and its scores.

        Scores: agreement (Dice of the segmenter's lesion and the mask; 1 where both are empty), similarity
        (correlation of thumbnails, mirrored ones too) to the most similar training image, nearest_case. None:
        not measured.
        """
        scores = {"agreement": None, "similarity": None, "nearest_case": None}
        if np.ptp(image, axis=(0, 1)).max() <= CONSTANT:
            return "constant", scores
        indices, similarities = nearest(thumbnails(with_mirrored(image)), self.thumbnails)
        best = int(similarities.argmax())
        scores["similarity"] = round(float(similarities[best]), 6)
        scores["nearest_case"] = self.case_ids[indices[best]]
        if self.segmenter is not None:
            dice = binary_metrics(mask > 0, self.segmenter.lesion_mask(image) > 0)["Dice"]
            scores["agreement"] = 1.0 if math.isnan(dice) else round(dice, 6)
        if scores["similarity"] > self.max_similarity:
            return "near copy", scores
        if self.segmenter is not None and scores["agreement"] < self.min_agreement:
            return "agreement", scores
        return None, scores


def training_thumbnails(dataset: RawDataset, cases: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Ids and thumbnails (N, 3072) of the images that the model has seen."""

    def thumbnail(case_id: str) -> np.ndarray:
        return thumbnails([read_rgb_case(dataset, dataset.case(case_id))[0]])[0]

    with ThreadPoolExecutor() as pool:
        return list(cases), np.stack(list(pool.map(thumbnail, cases)))


def judge_of_fold(folder: Path, dataset: RawDataset, fold: Fold, device: torch.device) -> Segmenter:
    """The nnU-Net model that judges: of the same data set its fold `fold`, where it is there, else all folds.

    UserError: not a model folder, other channels, several labels.
    """
    from law_synth.evaluation.segmenter import load_judge

    folds = [fold] if (folder / f"fold_{fold}" / CHECKPOINT).is_file() and _same(folder, dataset) else None
    segmenter = load_judge(folder, device, folds)
    channels = len(dataset.channel_names)
    if segmenter.channels != channels:
        raise UserError(
            f"{folder}: found a model of {segmenter.channels} channel(s), expected {channels} as "
            f"{dataset.folder.name} has; choose another --segmenter"
        )
    return segmenter


def _same(folder: Path, dataset: RawDataset) -> bool:
    plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
    return plans.get("dataset_name") == dataset.folder.resolve().name
