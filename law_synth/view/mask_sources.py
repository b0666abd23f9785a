"""Masks to generate from, with their owners and places. A mask is a uint8 map of class numbers, 0 to K."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataset_conversion.image_files import IMAGE_ENDINGS
from dataset_conversion.system.names import tidy_name
from law_synth.view.classes import VOLUME_ENDINGS
from law_synth.view.places import Geometry
from law_synth.view.slices import Slice, SliceView

VOLUMES = (*VOLUME_ENDINGS, ".nii")
ENDINGS = (*VOLUMES, *IMAGE_ENDINGS)


@dataclass(frozen=True)
class MaskSource:
    """A mask to generate from."""

    name: str
    """Id of the case. For a mask from a folder: the file's name, or its path below that folder."""
    case: str | None
    """The training case that owns the mask, or that its file is named after. None where there is neither."""
    group: str
    """Patient or video that the mask is of. Where that is unknown: the stem of its file."""
    index: int | None
    """Index of the slice, where the mask is one of a volume."""
    read: Callable[[], np.ndarray]
    """Returns the class numbers, uint8 (Y, X)."""
    locate: Callable[[], Geometry | None]
    """Returns the mask's place in space; None in a 2D data set."""
    sha256: str = ""
    """sha256 of the pixels. Only a mask from a folder has it."""
    sha256_at_size: str | None = None
    """The same at model size. None for a mask of a single class, which many cases may share."""


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
    """sha256 of a mask's size and pixels; it changes with every single pixel."""
    return hashlib.sha256(f"{mask.shape}".encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()


def mask_stem(name: str) -> str:
    """A mask file's tidy name without its ending; `.nii.gz` counts as one ending."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return tidy_name(name[: len(name) - len(ending)])
