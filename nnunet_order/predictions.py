"""Predictions as files: read at the size of their labels, which may be that before or after a shrinking."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.image_files import opened
from dataset_conversion.images import shrunk_size
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.errors import UserError

logger = logging.getLogger(__name__)


def read_prediction(dataset: RawDataset, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Label map of a prediction at the size (Z, Y, X) of its label.

    The conversion of the data set may have shrunk images (--max-side), and prediction and label may be of
    either size. The prediction then takes the label's size by nearest neighbours, as masks are shrunk.
    UserError: unreadable, values outside dataset.json, any other size.
    """
    found = dataset.read_label(path)
    if found.shape == shape:
        return found
    max_side = dataset.description.max_side
    if max_side is None or not found.shape[0] == shape[0] == 1 or not is_shrunk(found, shape, max_side):
        raise UserError(
            f"{path}: found size {found.shape}, expected the label's {shape} (Z, Y, X); predict from the "
            "images of this data set"
        )
    return nearest(found[0], shape[1:])[None]


def is_shrunk(found: np.ndarray, shape: tuple[int, ...], max_side: int) -> bool:
    """Whether one of two sizes (1, Y, X) is the other's after shrinking."""
    here, there = found.shape[1:], shape[1:]
    return shrunk_size(max_side, here) == there or shrunk_size(max_side, there) == here


def nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) or (H, W, 3) at another size (H, W): each pixel is the one that Pillow takes for the nearest."""
    numbers = (Image.fromarray(np.arange(old, dtype=np.int32)[:, None]) for old in pixels.shape[:2])
    rows, columns = (
        np.asarray(lines.resize((1, new), Image.Resampling.NEAREST))
        for lines, new in zip(numbers, size, strict=True)
    )
    return pixels[rows, columns[:, 0]]


def tell_of_other_sizes(dataset: RawDataset, jobs: Iterable[tuple[Path, Path]]) -> None:
    """Log how many predictions of (label, prediction) have the size from before or after a shrinking."""
    if dataset.description.max_side is None or dataset.holds_volumes:
        return
    others = [paths for paths in jobs if len({_size(path) for path in paths}) > 1]
    if others:
        logger.warning(
            "%d prediction(s) are not as large as their labels, e.g. %s; each is scored at its label's size, "
            "because the images of this data set were shrunk to %d px",
            *(len(others), others[0][1], dataset.description.max_side),
        )


def _size(path: Path) -> tuple[int, int]:
    with opened(path) as image:
        return image.size
