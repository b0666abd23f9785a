"""A mask augmentation for lesions inside an organ: the lesion moves, turns and bends; the organ stays.

The organ is filled where the lesion was. The lesion then gets a new place on the organ. At least as large a
share of it lies within the organ as before, and it always touches what is left of the organ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from law_synth.generation.warps import classes_at, draw_coordinates, touches_border, warp

NESTED_SHARE = 0.25  # of a class's border, on the class that it is nested in; 0.35 for KiTS19's tumours
LOPSIDED = 2  # times the share of the other class's border; below that, the two are neighbours
ATTEMPTS = 20  # draws before all lesions stay where they are
AREA_CHANGE = 0.1  # most that a lesion's area may change
SCALE_CHANGE = 0.08  # of its area, at most, on purpose: bending and rounding change it as well
DEEPER = 0.2  # the most that the share within the organ should grow, if there is such a place
ORGAN_LEFT = 0.5  # of the organ's area that must remain visible


class Nesting(NamedTuple):
    """Class numbers of an organ and of a lesion inside it."""

    outer: int
    inner: int


def find_nestings(masks: Iterable[np.ndarray], count: int) -> list[Nesting]:
    """Which of `count` classes are nested in which, by masks of class numbers (Y, X).

    Class b is nested in a when at least `NESTED_SHARE` of b's border over all masks lies on a, and that share
    is at least `LOPSIDED` times the share of a's border that lies on b. (Not most of it: a kidney tumour
    bulges, 65 % of its border in KiTS19 is on other tissue.) A class that holds another one stays in place.
    """
    border = np.zeros((count + 1, count + 1))  # pixel edges of each class on each other class
    for mask in masks:
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            differ = one != other
            pairs = one[differ].astype(np.intp) * (count + 1) + other[differ]
            border += np.bincount(pairs, minlength=border.size).reshape(border.shape)
    border += border.T
    share = border / np.maximum(border.sum(axis=1, keepdims=True), 1)
    share[:, 0] = 0  # nothing is nested in the background
    nestings = [
        Nesting(outer, inner)
        for inner in range(1, count + 1)
        for outer in [int(share[inner].argmax())]
        if share[inner, outer] >= max(NESTED_SHARE, LOPSIDED * share[outer, inner])
    ]
    outers = {nesting.outer for nesting in nestings}
    return [nesting for nesting in nestings if nesting.inner not in outers]


def move_lesions(mask: np.ndarray, nestings: Sequence[Nesting], seed: int, size: int) -> np.ndarray:
    """A mask (Y, X) of class numbers whose nested lesions have new places and shapes, drawn from `seed`.

    Each connected lesion keeps its area within 10 %, and no class vanishes at `size` x `size`. A lesion stays
    where it is if no part of it lies within its organ or if the image's border cuts it. If no draw finds room
    for all, all stay.
    """
    for outer, inner in nestings:
        draws = (_move(mask, outer, inner, np.random.default_rng([seed, i])) for i in range(ATTEMPTS))
        present = classes_at(mask, size)
        mask = next((new for new in draws if new is not None and classes_at(new, size) == present), mask)
    return mask


def filled_organ(mask: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """The organ as it was before its lesions: bool (Y, X).

    The part of a lesion within the convex hull of the organ that it touches belongs to the organ.
    """
    from scipy.ndimage import find_objects, label

    filled = mask == outer
    parts, _ = label((mask == outer) | (mask == inner), np.ones((3, 3)))
    for number, box in enumerate(find_objects(parts), 1):
        part = parts[box] == number
        lesion = np.argwhere(part & (mask[box] == inner))
        if len(lesion):
            inside = lesion[_in_hull(part & (mask[box] == outer), lesion)]
            filled[box][tuple(inside.T)] = True
    return filled


def _move(mask: np.ndarray, outer: int, inner: int, rng: np.random.Generator) -> np.ndarray | None:
    """One draw of new places; None where a lesion finds no room."""
    from scipy.ndimage import binary_dilation, label

    organ = filled_organ(mask, outer, inner)
    parts, count = label(mask == inner, np.ones((3, 3)))
    lesions = sorted((parts == number for number in range(1, count + 1)), key=np.count_nonzero, reverse=True)
    moving = [lesion for lesion in lesions if not touches_border(lesion) and (lesion & organ).any()]
    new = np.where(mask == inner, 0, mask)
    new[organ] = outer
    new[(mask == inner) & ~np.any([*moving, np.zeros_like(organ)], axis=0)] = inner
    for lesion in moving:
        shape = _reshaped(lesion, rng)
        share = np.count_nonzero(lesion & organ) / np.count_nonzero(lesion)
        taken = binary_dilation(new == inner, np.ones((3, 3))) | ((new != outer) & (new != 0))
        corner = _place(shape, organ, taken, share, rng)
        if corner is None:
            return None
        # Within a rim of one pixel, the lesion must still touch what is left of the organ.
        box = tuple(slice(start - 1, start + n + 1) for start, n in zip(corner, shape.shape, strict=True))
        shape = np.pad(shape, 1)
        new[box][shape] = inner
        if not (binary_dilation(shape) & (new[box] == outer)).any():
            return None
    enough = np.count_nonzero(new == outer) >= ORGAN_LEFT * np.count_nonzero(mask == outer)
    return new.astype(np.uint8) if enough else None


def _reshaped(lesion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One connected lesion, turned, mirrored, scaled and bent: bool, cut to its bounding box."""
    from scipy.ndimage import label

    shape = _cut(lesion)
    area, height, width = np.count_nonzero(shape), *shape.shape
    side = int(np.ceil(1.2 * np.hypot(height, width))) + 8  # room for every rotation
    top, left = (side - height) // 2, (side - width) // 2
    patch = np.pad(shape, ((top, side - height - top), (left, side - width - left))).astype(np.uint8)
    centre = np.full((2, 1, 1), (side - 1) / 2)
    for _ in range(ATTEMPTS):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(1 - SCALE_CHANGE, 1 + SCALE_CHANGE)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn = turn @ np.diag([rng.choice([-1, 1]), 1]) / np.sqrt(scale)
        bent = draw_coordinates(patch, "elastic", rng) - centre
        warped = warp(patch, np.einsum("ij,jyx->iyx", turn, bent) + centre)
        change = abs(np.count_nonzero(warped) - area)
        if change <= AREA_CHANGE * area and label(warped, np.ones((3, 3)))[1] == 1:
            return _cut(warped > 0)
    return np.rot90(shape, rng.integers(4))  # a lesion of a few pixels


def _place(
    shape: np.ndarray, organ: np.ndarray, taken: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A place for the corner of `shape`, with at least `share` of it in the organ and nothing on `taken`."""
    from scipy.signal import fftconvolve

    if any(side + 2 > limit for side, limit in zip(shape.shape, organ.shape, strict=True)):
        return None
    kernel = shape[::-1, ::-1].astype(np.float64)
    # The outermost pixels are left out, so that the border cuts no lesion.
    inside, hit = (
        np.rint(fftconvolve(area[1:-1, 1:-1].astype(np.float64), kernel, mode="valid"))
        for area in (organ, taken)
    )
    area = np.count_nonzero(shape)
    allowed = (hit == 0) & (inside >= share * area) & (inside > 0)
    alike = allowed & (inside <= (share + DEEPER) * area)
    places = np.argwhere(alike if alike.any() else allowed) + 1
    return tuple(rng.choice(places).tolist()) if len(places) else None


def _in_hull(organ: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which of the pixels (P, 2) lie in the convex hull of the organ's pixels: bool (P,)."""
    from scipy.ndimage import binary_erosion
    from scipy.spatial import Delaunay, QhullError

    try:
        return Delaunay(np.argwhere(organ & ~binary_erosion(organ))).find_simplex(points) >= 0
    except (QhullError, ValueError):  # there is no organ, or it is a line and has no inside
        return np.zeros(len(points), bool)


def _cut(mask: np.ndarray) -> np.ndarray:
    """A mask cut to the bounding box of what is in it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
