"""Slices of volumes the way radiologists look at them: the patient's right on the left, head or front up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from dataset_conversion.user_error import UserError
from dataset_conversion.volumes import Volume, read_slabs

PlaneName = Literal["axial", "coronal", "sagittal"]

# World axes (0: right, 1: anterior, 2: superior) of slices, rows and columns. Rows and columns run against
# them: from anterior to posterior or superior to inferior, from right to left or anterior to posterior.
WORLD_AXES: dict[PlaneName, tuple[int, int, int]] = {
    "axial": (2, 1, 0),
    "coronal": (1, 2, 0),
    "sagittal": (0, 2, 1),
}


class Plane(NamedTuple):
    """Which axes of a volume's array are slices, rows and columns, and which of the last two to flip."""

    slices: int
    rows: int
    columns: int
    flips_rows: bool
    flips_columns: bool

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """A slice with its axes as in the file -> (rows, columns)."""
        pixels = pixels if self.rows < self.columns else pixels.T
        return pixels[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]


def find_plane(volume: Volume, name: PlaneName) -> Plane:
    """The axes nearest to a plane, however the volume lies. UserError: its header does not say how."""
    from nibabel.orientations import io_orientation

    if not volume.has_orientation:
        raise UserError(
            f"{volume.path}: found neither sform nor qform, expected a header that says how the patient "
            "lies; correct it or convert without --slices"
        )
    world, sign = io_orientation(volume.affine).T
    slices, rows, columns = (int(np.flatnonzero(world == axis)[0]) for axis in WORLD_AXES[name])
    return Plane(slices, rows, columns, flips_rows=sign[rows] > 0, flips_columns=sign[columns] > 0)


def slice_affine(volume: Volume, plane: Plane, index: int) -> np.ndarray:
    """Affine (4, 4) of slice `index` as an array (columns, rows, 1), the order of NIfTI; right-handed."""
    to_volume = np.zeros((4, 4))  # from the slice's indices to the volume's
    to_volume[3, 3] = 1
    for axis, target, flips in (
        (0, plane.columns, plane.flips_columns),
        (1, plane.rows, plane.flips_rows),
    ):
        to_volume[target, axis] = -1 if flips else 1
        to_volume[target, 3] = volume.shape[target] - 1 if flips else 0
    to_volume[plane.slices, 2] = 1
    to_volume[plane.slices, 3] = index
    affine = volume.affine @ to_volume
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:, 2] *= -1
    return affine


def orientation(volume: Volume) -> str | None:
    """Where the axes of its array run to, such as KiTS19's own IPL; None where no header says so."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(volume.affine)) if volume.has_orientation else None


class TurnedVolume(NamedTuple):
    """A volume with its axes in another order or direction; every voxel keeps its place in the patient."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    slabs: Iterator[np.ndarray]


def turned_volume(
    volume: Volume, target: str | None, dtype, convert: Callable[[np.ndarray], np.ndarray] | None = None
) -> TurnedVolume:
    """`volume` in the orientation `target` (None: its own), to be written as `dtype` slab by slab.

    The slabs are `convert`ed. A volume that must be turned is held in memory, once, as `dtype`. UserError: as
    `read_slabs`.
    """
    from nibabel.orientations import (
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    slabs = read_slabs(volume) if convert is None else map(convert, read_slabs(volume))
    if target is None or target == orientation(volume):
        return TurnedVolume(volume.shape, volume.affine, slabs)
    values = np.empty(volume.shape, dtype, order="F")
    for k, slab in enumerate(slabs):
        values[:, :, k] = slab
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(target))
    values = apply_orientation(values, turn)  # a view
    affine = volume.affine @ inv_ornt_aff(turn, volume.shape)
    return TurnedVolume(values.shape, affine, (values[:, :, k] for k in range(values.shape[2])))
