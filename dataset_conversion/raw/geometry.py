"""Place and pixel sizes of label files, and the plane in which a volume is best looked at."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.grid import read_grid
from dataset_conversion.system.errors import UserError

logger = logging.getLogger(__name__)


def check_places(dataset: RawDataset, truths: Mapping[str, Path], pairs: Sequence[tuple[Path, Path]]) -> None:
    """UserError when predicted volumes lie elsewhere in space than their labels, with other axes or voxels.

    nnU-Net gives a prediction the place of its image. Where that is not the label's own, a warning names the
    case: nnU-Net itself compares the two voxel by voxel.

    Args:
        truths: case id -> label file.
        pairs: (label file, prediction file), of every folder of predictions.
    """
    if not dataset.holds_volumes:  # pictures have no place
        return
    cases = (*dataset.training_cases, *dataset.test_cases)
    images = {case.id: case.images[0] for case in cases} | {case.label: case.images[0] for case in cases}
    case_of = {truth: case for case, truth in truths.items()}
    beside: list[str] = []
    for truth, prediction in pairs:
        expected, found = read_grid(dataset, truth), read_grid(dataset, prediction)
        unlike = found.unlike(expected) if found.shape == expected.shape else None
        if unlike is None:
            continue
        image = images.get(truth, images.get(case_of[truth]))
        if unlike[0] != "spacing" and image and found.unlike(read_grid(dataset, image)) is None:
            beside.append(case_of[truth])
            continue
        name, here, there = unlike
        raise UserError(
            f"{prediction}: found {name} {here}, expected {there} as of its label {truth}; bring the "
            "prediction into the label's grid, or correct the header that is wrong"
        )
    if beside := list(dict.fromkeys(beside)):
        shown = ", ".join(beside[:5]) + (", ..." if len(beside) > 5 else "")
        logger.warning(
            "%d label(s) lie elsewhere than their image and prediction, compared voxel by voxel: %s",
            len(beside),
            shown,
        )


def label_spacing(dataset: RawDataset, path: Path) -> tuple[float, float, float]:
    """Pixel size (Z, Y, X) of a label file in its own unit, mm for medical formats; 1 where a file has none.

    As nnU-Net's reader for this data set gives it: it knows headers that SimpleITK refuses, and a reader that
    reorients turns the axes. Z of a 2D file is a thousand pixels.
    """
    _, properties = dataset.reader.read_seg(str(path))
    return tuple(float(size) for size in properties["spacing"])


def slice_axis(spacing: Sequence[float], shape: Sequence[int]) -> int:
    """The axis between slices, spacing and shape being (Z, Y, X).

    That of a single slice; of a volume the one of the largest spacing, along which nnU-Net's 2d slices, too.
    """
    if 1 in shape:
        return shape.index(1)
    return max(range(len(spacing)), key=spacing.__getitem__)
