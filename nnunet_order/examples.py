"""Which cases, slices and intensities the pictures of `evaluate` show."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dataset_conversion.raw.cases import COLOUR_ENDINGS, Case, files_by_id
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.geometry import label_spacing, slice_axis
from nnunet_order.evaluation import Evaluation
from nnunet_order.metrics import METRICS
from nnunet_order.pictures import Example, displayable, intensity_window
from nnunet_order.predictions import nearest, read_prediction

logger = logging.getLogger(__name__)

CT_MARGIN = 0.25  # of the foreground's range: KiTS19's -79 to 304 HU become about the abdomen's window


def chosen_examples(evaluation: Evaluation) -> list[Example]:
    """Best, median and worst case of each test set by the first prediction's Dice; empty without images."""
    dataset = evaluation.dataset
    cases = (*dataset.training_cases, *dataset.test_cases)
    images = {case.id: case for case in cases}
    # A training and a test case may share an id.
    images |= {case.id: case for case in cases if case.label == evaluation.truths.get(case.id)}
    first = next(iter(evaluation.folders))
    dice = {case: mean_dice(label_dice(evaluation, first, case)) for case in evaluation.truths}
    examples = []
    for test_set, members in evaluation.test_sets.items():
        ranked = sorted((c for c in members if c in images and not math.isnan(dice[c])), key=dice.__getitem__)
        if not ranked:
            logger.warning("%s: no images or nothing to find in them; left out of examples.png", test_set)
            continue
        # A dict, because a small set has one case in several ranks.
        ranks = {ranked[0]: "worst", ranked[len(ranked) // 2]: "median", ranked[-1]: "best"}
        examples += [
            make_example(evaluation, images[case], f"{test_set}, {rank}")
            for case, rank in reversed(ranks.items())
        ]
    return examples


def label_dice(evaluation: Evaluation, prediction: str, case: str) -> dict[str, float]:
    """Label -> Dice of a case; NaN where the label is in neither truth nor prediction."""
    position = list(evaluation.truths).index(case)
    values = evaluation.scores[prediction][position, :, METRICS.index("Dice")]
    return dict(zip(evaluation.dataset.regions, values.tolist(), strict=True))


def mean_dice(dice: Mapping[str, float]) -> float:
    """Mean over the labels that are there; NaN where none is."""
    known = [value for value in dice.values() if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def make_example(evaluation: Evaluation, case: Case, rank: str) -> Example:
    """One row of examples.png; of a volume, the slice with the most of its rarest label."""
    dataset = evaluation.dataset
    truth = dataset.read_label(evaluation.truths[case.id])  # (Z, Y, X)
    files = {
        name: files_by_id(folder, dataset.file_ending)[case.id] for name, folder in evaluation.folders.items()
    }
    predictions = {name: read_prediction(dataset, path, truth.shape) for name, path in files.items()}
    spacing = label_spacing(dataset, evaluation.truths[case.id])
    axis = slice_axis(spacing, truth.shape)
    index = shown_slice([truth, *predictions.values()], dataset.regions, axis)
    plane, window = shown_plane(dataset, case, np.isin(truth, foreground_values(dataset)), axis, index)
    if 1 in truth.shape:
        plane = nearest(plane, truth.take(0, axis).shape)  # --labels may be those of the original images
    caption = f"{rank}\n{case.id if len(case.id) <= 24 else case.id[:21] + '...'}"
    if truth.shape[axis] > 1:
        caption += f"\nslice {index + 1} of {truth.shape[axis]}"
        caption += f"\n{dataset.channel_names[0]} {window[0]:.4g} to {window[1]:.4g}"
    height, width = np.delete(spacing, axis)
    return Example(
        caption=caption,
        image=plane,
        truth=truth.take(index, axis),
        predictions={
            name: (labels.take(index, axis), label_dice(evaluation, name, case.id))
            for name, labels in predictions.items()
        },
        labels=dataset.regions,
        ignore_label=dataset.ignore_label,
        pixel_aspect=height / width,
    )


def foreground_values(dataset: RawDataset) -> list[int]:
    """Label values that belong to a label or region."""
    return sorted({value for values in dataset.regions.values() for value in values})


def shown_slice(label_maps: Sequence[np.ndarray], regions: Mapping[str, Sequence[int]], axis: int) -> int:
    """Where the first of these (Z, Y, X) maps that is not empty has most of its rarest label."""
    for labels in label_maps:
        masks = [np.isin(labels, values) for values in regions.values()]
        if present := [mask for mask in masks if mask.any()]:
            rarest = min(present, key=np.count_nonzero)
            return int(rarest.sum(axis=tuple({0, 1, 2} - {axis})).argmax())
    return label_maps[0].shape[axis] // 2


def shown_plane(
    dataset: RawDataset, case: Case, foreground: np.ndarray, axis: int, index: int
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """A slice for display and the window of its grey values: colours as they are, else the first channel.

    CT is shown around the intensities of the volume's foreground, as air and bone would leave the organs no
    contrast; other images in the window of `displayable`.
    """
    image = dataset.read_image(case)  # (C, Z, Y, X)
    plane = image.take(index, axis + 1)
    if dataset.file_ending in COLOUR_ENDINGS and len(dataset.channel_names) >= 3:
        return displayable(plane, colour=True), None
    if dataset.channel_names[0].casefold() == "ct" and foreground.any():
        low, high = intensity_window(image[0][foreground], CT_MARGIN)
        window = float(round(low)), float(round(high))  # Hounsfield units
    else:
        window = intensity_window(plane[0])
    return displayable(plane, colour=False, window=window), window
