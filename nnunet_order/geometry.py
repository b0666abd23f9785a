"""Pixel sizes of label files, and the plane in which a volume is best looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataset_conversion.raw import RawDataset


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
