"""Masks to generate from: those of the training cases, or a folder of files, and their augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dataset_conversion.images import IMAGE_ENDINGS, Notes, read_index_mask
from dataset_conversion.raw import Case, RawDataset
from dataset_conversion.user_error import UserError
from law_synth.cases import lesion_label, resize_mask

Augmentation = Literal["none", "flip", "affine", "elastic"]

ATTEMPTS = 20  # draws before a mask is only flipped
AREA_CHANGE = 0.1  # most that an augmentation may change a lesion's area
SHIFT = 0.1  # of the image's sides, at most, to either side
SHEAR = 0.2  # tangent of the largest shear angle
BEND = 0.1  # largest elastic displacement, of the lesion's diameter


@dataclass(frozen=True)
class MaskSource:
    """A mask to generate from; `read` gives uint8 (Y, X) of 0 and 1."""

    name: str
    case: str | None
    """The case of the data set that owns the mask; None for a mask that came from elsewhere."""
    read: Callable[[], np.ndarray]


def case_masks(dataset: RawDataset, cases: list[str]) -> list[MaskSource]:
    """The masks of training cases, in the order of `cases`. UserError: one is not there."""
    return [
        MaskSource(case.id, case.id, lambda case=case: case_mask(dataset, case))
        for case in map(dataset.case, cases)
    ]


def case_mask(dataset: RawDataset, case: Case) -> np.ndarray:
    """Lesion mask of a labelled case: uint8 (Y, X) of 0 and 1."""
    return (dataset.read_label(case.label)[0] == lesion_label(dataset)).astype(np.uint8)


def folder_masks(folder: Path, dataset: RawDataset) -> list[MaskSource]:
    """The mask files of a folder, sorted by name. UserError: no such folder, or no images in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, expected the folder of masks; correct --masks")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
    if not paths:
        raise UserError(
            f"{folder}: found no images ({', '.join(IMAGE_ENDINGS)}), expected masks; correct --masks"
        )
    known = {case.id for case in dataset.training_cases}
    lesion = lesion_label(dataset)
    return [
        MaskSource(
            path.name, path.stem if path.stem in known else None, lambda path=path: read_mask(path, lesion)
        )
        for path in paths
    ]


def read_mask(path: Path, lesion: int) -> np.ndarray:
    """Mask file of 0 and `lesion`, or of 0 and 255, as uint8 (Y, X) of 0 and 1. UserError: other values."""
    mask = read_index_mask(path, Notes())
    values = set(np.unique(mask).tolist())
    if not (values <= {0, lesion} or values <= {0, 255}):
        shown = ", ".join(map(str, sorted(values - {0, lesion})[:5]))
        raise UserError(
            f"{path}: found mask values {shown}, expected 0 and {lesion}, or 0 and 255; correct it"
        )
    return (mask > 0).astype(np.uint8)


def mask_hash(mask: np.ndarray) -> str:
    """sha256 of a mask's size and pixels; one pixel more or less changes it."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()


def augment(mask: np.ndarray, kind: Augmentation, seed: int, size: int) -> np.ndarray:
    """A variant of a mask (Y, X), drawn from `seed`, with the lesion's area kept within 10 %.

    A lesion inside the image stays inside, one that the border cuts keeps its cut there, and it does not
    vanish at `size` x `size`. When no draw of `ATTEMPTS` does so, the mask is only flipped.
    """
    if kind == "none" or not mask.any():
        return mask
    for attempt in range(ATTEMPTS):
        warped = warp(mask, draw_coordinates(mask, kind, np.random.default_rng([seed, attempt])))
        if _is_like(warped, mask, size):
            return warped
    return warp(mask, draw_coordinates(mask, "flip", np.random.default_rng(seed)))


def draw_coordinates(mask: np.ndarray, kind: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Where each pixel of the new mask lies in `mask`: float (2, Y, X), rows first."""
    if kind == "elastic":
        return _draw_elastic(mask, rng)
    if kind == "affine" and not _touches_border(mask):  # a straight cut inside the image looks unnatural
        return _draw_affine(mask, rng)
    grid, sides = _grid(mask.shape), np.array(mask.shape)[:, None, None]
    flipped = rng.integers(0, 2, size=(2, 1, 1)).astype(bool)
    return np.where(flipped, sides - 1 - grid, grid)


def warp(mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Mask (Y, X) of 0 and 1 read at float coordinates (2, Y, X), bilinearly, then split at one half."""
    from scipy.ndimage import map_coordinates

    values = map_coordinates(mask.astype(np.float32), coordinates, order=1, mode="constant")
    return (values > 0.5).astype(np.uint8)


def _draw_affine(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotation, mirroring and shear (determinant 1 or -1) about the lesion's centre, then a shift."""
    angle, shear = rng.uniform(-np.pi, np.pi), rng.uniform(-SHEAR, SHEAR)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([rng.choice([-1, 1]), 1])
    points = np.argwhere(mask)  # (P, 2)
    centre = points.mean(axis=0)
    moved = (points - centre) @ matrix.T
    sides = np.array(mask.shape)
    target = centre + rng.uniform(-SHIFT, SHIFT, 2) * sides
    # As near to the drawn place as the image's border allows.
    target = np.clip(target, 2 - moved.min(axis=0), sides - 3 - moved.max(axis=0))
    back = np.linalg.inv(matrix)
    offset = (centre - back @ target)[:, None, None]
    return np.einsum("ij,jyx->iyx", back, _grid(mask.shape)) + offset


def _draw_elastic(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth displacement along the contours of a random height map, which keeps areas to first order.

    The map's bumps are half as wide as the lesion, and it is level along the image's border.
    """
    from scipy.ndimage import map_coordinates

    diameter = 2 * np.sqrt(mask.sum() / np.pi)
    spacing = max(diameter / 2, 4.0)
    grid = _grid(mask.shape)
    cells = [int(np.ceil(side / spacing)) + 3 for side in mask.shape]
    height = map_coordinates(rng.standard_normal(cells), grid / spacing + 1, order=3, mode="nearest")
    sides = np.array(mask.shape)[:, None, None]
    margin = np.clip(np.minimum(grid, sides - 1 - grid) / spacing, 0, 1)
    height *= np.prod(margin**2 * (3 - 2 * margin), axis=0)
    down, right = np.gradient(height)
    displacement = np.stack([right, -down])  # divergence-free
    longest = np.hypot(*displacement)[mask > 0].max()
    return grid + displacement * (max(BEND * diameter, 1.0) / max(longest, 1e-9))


def _is_like(warped: np.ndarray, mask: np.ndarray, size: int) -> bool:
    """Whether area, contact with the border and presence at model size are those of `mask`."""
    area = mask.sum()
    return (
        abs(int(warped.sum()) - int(area)) <= AREA_CHANGE * area
        and _touches_border(warped) == _touches_border(mask)
        and resize_mask(warped, size).any() == resize_mask(mask, size).any()
    )


def _touches_border(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.indices(shape).astype(np.float64)
