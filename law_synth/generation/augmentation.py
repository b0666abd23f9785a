"""Variants of a mask that keep a lesion a lesion. A mask is a uint8 map of class numbers, 0 to K."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from law_synth.generation.nested_masks import Nesting, move_lesions
from law_synth.generation.warps import classes_at, draw_coordinates, touches_border, warp

Augmentation = Literal["none", "flip", "affine", "elastic", "nested", "nested-elastic"]

ATTEMPTS = 20  # draws before a mask is only flipped
AREA_CHANGE = 0.1  # most that an augmentation may change a class's area


def augment(
    mask: np.ndarray, kind: Augmentation, seed: int, size: int, nestings: Sequence[Nesting] = ()
) -> np.ndarray:
    """A variant of a mask (Y, X), drawn from `seed`, with each class's area kept within 10 %.

    Flips and warps move all classes together. What lies inside the image stays inside it, what the border
    cuts remains cut by it, and no class vanishes at `size` x `size`. If none of `ATTEMPTS` draws achieves
    that, the mask is only flipped. `nested` moves the lesions of `nestings` within their organ, of which more
    or less is then visible, see `move_lesions`; `nested-elastic` then bends the whole mask.
    """
    if kind == "none" or not mask.any():
        return mask
    if kind == "nested":
        return move_lesions(mask, nestings, seed, size)
    if kind == "nested-elastic":
        moved = move_lesions(mask, nestings, seed, size)
        lesions = [nesting.inner for nesting in nestings]
        warps = _likely_warps(moved, "elastic", seed, size)
        # Moving has changed a lesion's area once already.
        return next((warped for warped in warps if _areas_alike(warped, mask, lesions)), moved)
    warped = next(_likely_warps(mask, kind, seed, size), None)
    if warped is None:
        return warp(mask, draw_coordinates(mask, "flip", np.random.default_rng(seed)))
    return warped


def _likely_warps(mask: np.ndarray, kind: str, seed: int, size: int) -> Iterator[np.ndarray]:
    """The draws of a warp that keep areas, contact with the border and presence at model size."""
    for attempt in range(ATTEMPTS):
        warped = warp(mask, draw_coordinates(mask, kind, np.random.default_rng([seed, attempt])))
        if _is_like(warped, mask, size):
            yield warped


def _areas_alike(warped: np.ndarray, mask: np.ndarray, classes: Sequence[int]) -> bool:
    new, old = (np.bincount(m.ravel(), minlength=256)[classes] for m in (warped, mask))
    return bool((np.abs(new - old) <= AREA_CHANGE * old).all())


def _is_like(warped: np.ndarray, mask: np.ndarray, size: int) -> bool:
    return (
        _areas_alike(warped, mask, range(1, 256))
        and touches_border(warped) == touches_border(mask)
        and classes_at(warped, size) == classes_at(mask, size)
    )
