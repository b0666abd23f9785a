"""Where the voxels of a file lie in space, as nnU-Net's reader of its data set sees them.

Of label files also the pixel sizes, and the plane in which a volume is best looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_conversion.image_files import check_regular
from dataset_conversion.raw.dataset import RawDataset, reason
from dataset_conversion.system.errors import UserError

logger = logging.getLogger(__name__)

SAME_SPACING = 1e-3  # relative: headers and JSON files hold rounded numbers
SAME_PLACE = 0.25  # of a voxel: how far rounded headers may put the corners of one grid apart
SAME_DIRECTION = 1e-3


class Grid(NamedTuple):
    """Size and place of an array (Z, Y, X); what a file does not say is None."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    """(Z, Y, X) in mm."""
    origin: tuple[float, ...] | None = None
    """(x, y, z) of the first voxel's centre in mm, the axes pointing left, back and up as SimpleITK's."""
    direction: tuple[float, ...] | None = None
    """Matrix (3, 3) row by row, from steps along X, Y and Z of the array to x, y and z, as SimpleITK's."""
    is_picture: bool = False
    """Whether the file has two axes; then Z is 1 and its place a plane of z = 0."""

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) in mm: the centres of the outermost voxels."""
        ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape[::-1]) - 1)
        return (ends * self.spacing[::-1]) @ np.reshape(self.direction, (3, 3)).T + self.origin

    def unlike(self, expected: Grid) -> tuple[str, str, str] | None:
        """The first of spacing, direction and origin in which two grids of one size differ beyond rounding.

        As (its name, this grid's, the expected grid's); None where there is none, or a file says too little.
        """
        if self.spacing is None or expected.spacing is None:
            return None
        if not np.allclose(self.spacing, expected.spacing, rtol=SAME_SPACING):
            return "spacing", _shown(self.spacing[::-1]), _shown(expected.spacing[::-1])
        if self.origin is None or expected.origin is None:
            return None
        if np.abs(self.corners - expected.corners).max() <= SAME_PLACE * min(expected.spacing):
            return None
        if not np.allclose(self.direction, expected.direction, atol=SAME_DIRECTION):
            return "direction", _shown(self.direction), _shown(expected.direction)
        return "origin", _shown(self.origin), _shown(expected.origin)


def read_grid(dataset: RawDataset, path: Path) -> Grid:
    """Grid of a volume's label file, or of an image file with a place in its header, of a data set.

    From the header where nnU-Net's reader is SimpleITK's, else by reading the file. UserError: unreadable,
    more than three axes.
    """
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if type(dataset.reader) is SimpleITKIO:
        return _grid_in_header(path)
    values, properties = dataset.read_stored(path)  # other readers may turn the axes
    shape, spacing = values.shape[1:], tuple(map(float, properties["spacing"]))
    if "sitk_stuff" in properties:
        of_header = properties["sitk_stuff"]
        place = _in_space(of_header["origin"], of_header["direction"])
        return Grid(shape, spacing, *place, len(of_header["origin"]) == 2)
    if "nibabel_stuff" in properties:
        of_header = properties["nibabel_stuff"]
        return _grid_of_affine(shape, of_header.get("reoriented_affine", of_header["original_affine"]))
    # nnU-Net's reader of 3D TIFF takes 1 mm where it finds no JSON file beside it.
    return Grid(shape, spacing if path.with_suffix(".json").is_file() else None)


def check_places(dataset: RawDataset, truths: Mapping[str, Path], pairs: Sequence[tuple[Path, Path]]) -> None:
    """UserError when predicted volumes lie elsewhere in space than their labels, with other axes or voxels.

    nnU-Net gives a prediction the place of its image. If the label lies elsewhere, a warning names the case,
    because nnU-Net itself compares the two voxel by voxel.

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

    Of a single slice it is the axis of length 1. Of a volume it is the axis with the largest spacing, along
    which nnU-Net's 2d configuration slices, too.
    """
    if 1 in shape:
        return shape.index(1)
    return max(range(len(spacing)), key=spacing.__getitem__)


def _grid_in_header(path: Path) -> Grid:
    import SimpleITK as sitk

    check_regular(path)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(
            f"{path}: cannot be read ({reason(error)}), expected an intact file; replace it"
        ) from error
    size, spacing = header.GetSize(), header.GetSpacing()
    if len(size) > 3:
        raise UserError(f"{path}: found {len(size)} axes, expected a volume of 3; split it")
    is_picture = len(size) == 2
    if is_picture:
        size, spacing = (*size, 1), (*spacing, 1.0)
    place = _in_space(header.GetOrigin(), header.GetDirection())
    return Grid(size[::-1], spacing[::-1], *place, is_picture)


def _in_space(
    origin: tuple[float, ...], direction: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Origin and direction of a picture as those of a volume of one slice; of a volume as they are."""
    if len(origin) == 3:
        return origin, direction
    matrix = np.eye(3)
    matrix[:2, :2] = np.reshape(direction, (2, 2))
    return (*origin, 0.0), tuple(matrix.ravel().tolist())


def _grid_of_affine(shape: tuple[int, int, int], affine: np.ndarray) -> Grid:
    """From nibabel's affine, whose axes point right, forward and up."""
    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    spacing = np.linalg.norm(matrix[:, :3], axis=0)
    direction = (matrix[:, :3] / spacing).ravel()
    return Grid(shape, tuple(spacing[::-1].tolist()), tuple(matrix[:, 3].tolist()), tuple(direction.tolist()))


def _shown(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{round(number, 4) + 0.0:.5g}" for number in numbers)  # + 0.0: no "-0"
