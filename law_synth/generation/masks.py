"""Masks to generate from, and their augmentation. A mask is a uint8 map of class numbers, 0 to K."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from law_synth.generation.nested_masks import Nesting, move_lesions
from law_synth.generation.warps import classes_at, draw_coordinates, touches_border, warp
from law_synth.slices import Geometry, Slice, SliceView

Augmentation = Literal["none", "flip", "affine", "elastic", "nested", "nested-elastic"]

ATTEMPTS = 20  # draws before a mask is only flipped
AREA_CHANGE = 0.1  # most that an augmentation may change a class's area


@dataclass(frozen=True)
class MaskSource:
    """A mask to generate from."""

    name: str
    """Id of the case; for a mask that came from elsewhere the file's name, or path below its folder."""
    case: str | None
    """The training case that owns the mask, or after which its file is named; None where there is neither."""
    group: str
    """Patient or video of the mask; its file's stem where nobody says."""
    index: int | None
    """Of the slice, where the mask is one of a volume."""
    read: Callable[[], np.ndarray]
    """Gives class numbers, uint8 (Y, X)."""
    locate: Callable[[], Geometry | None]
    """Gives its place in space; None in a 2D data set."""
    sha256: str = ""
    """Of the pixels, for a mask from elsewhere, and below at model size."""
    sha256_at_size: str | None = None
    """None where it is of one class only: then it is nobody's."""


def case_masks(view: SliceView, slices: Sequence[Slice]) -> list[MaskSource]:
    """The masks of training cases, in the order of `slices`."""
    return [
        MaskSource(
            slice_.case,
            slice_.case,
            view.dataset.groups[slice_.case],
            slice_.index,
            lambda slice_=slice_: view.read_mask(slice_),
            lambda slice_=slice_: view.geometry(slice_),
        )
        for slice_ in slices
    ]


def mask_hash(mask: np.ndarray) -> str:
    """sha256 of a mask's size and pixels; one pixel more or less changes it."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()


def augment(
    mask: np.ndarray, kind: Augmentation, seed: int, size: int, nestings: Sequence[Nesting] = ()
) -> np.ndarray:
    """A variant of a mask (Y, X), drawn from `seed`, with each class's area kept within 10 %.

    Flips and warps move all classes as one. What lies inside the image stays inside, what the border cuts
    keeps its cut there, and no class vanishes at `size` x `size`. When no draw of `ATTEMPTS` does so, the
    mask is only flipped. `nested` moves the lesions of `nestings` over their organ, see `move_lesions`, which
    shows more or less of the organ; `nested-elastic` then bends the result as a whole.
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
    """The draws of a warp that leave areas, contact with the border and presence at model size alike."""
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
