"""Smooth coordinate maps that vary a mask, and masks read through them."""

from __future__ import annotations

import numpy as np

from law_synth.view.resize import resize_mask

SHIFT = 0.1  # largest shift in either direction, of the image's sides
SHEAR = 0.2  # tangent of the largest shear angle
BEND = 0.1  # largest elastic displacement, of the lesion's diameter


def draw_coordinates(mask: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Where each pixel of the new mask lies in `mask`: float (2, Y, X), rows first."""
    if kind == "elastic":
        return _draw_elastic(mask, rng)
    if kind == "affine" and not touches_border(mask):  # a straight cut inside the image looks unnatural
        return _draw_affine(mask, rng)
    grid, sides = _grid(mask.shape), np.array(mask.shape)[:, None, None]
    flipped = rng.integers(0, 2, size=(2, 1, 1)).astype(bool)
    return np.where(flipped, sides - 1 - grid, grid)


def warp(mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Class numbers (Y, X) read at float coordinates (2, Y, X): the class with the largest bilinear share.

    With one class, that is a threshold of one half on its bilinear value.
    """
    from scipy.ndimage import map_coordinates

    classes = np.array([number for number in np.unique(mask) if number != 0], np.uint8)
    if not len(classes):
        return mask
    shares = np.stack(
        [map_coordinates((mask == n).astype(np.float32), coordinates, order=1) for n in classes]
    )
    background = 1 - shares.sum(axis=0)
    return np.where(shares.max(axis=0) > background, classes[shares.argmax(axis=0)], 0).astype(np.uint8)


def touches_border(mask: np.ndarray) -> bool:
    """Whether anything but background lies on the image's outermost pixels."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def classes_at(mask: np.ndarray, size: int) -> set[int]:
    """Class numbers that a mask has, background aside, where the model sees it at `size` x `size`."""
    return set(np.unique(resize_mask(mask, size)).tolist()) - {0}


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

    diameter = 2 * np.sqrt(np.count_nonzero(mask) / np.pi)
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


def _grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.indices(shape).astype(np.float64)
