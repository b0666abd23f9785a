"""Masks from a folder of label maps without images: pictures, or slices of volumes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.image_files import check_regular, images_in, warn_left_out
from dataset_conversion.images import read_index_mask
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import visible_files
from dataset_conversion.system.names import check_name
from dataset_conversion.system.parallel import dropping_the_rest
from dataset_conversion.volumes import evenly_spaced
from law_synth.view.classes import Classes
from law_synth.view.mask_sources import ENDINGS, VOLUMES, MaskSource, mask_hash, mask_stem
from law_synth.view.places import Geometry
from law_synth.view.resize import resize_mask
from law_synth.view.slices import Slice, SliceView

if TYPE_CHECKING:
    import SimpleITK as sitk

MANY = 200  # files that deserve a progress bar
READERS = 4  # volumes in memory at the same time


@dataclass(frozen=True)
class MaskFolder:
    """Makes mask sources of the label maps in a folder, or in its subfolders if it has none itself."""

    view: SliceView
    slices: Sequence[Slice]
    """Training slices. In a data set of volumes, pictures take their extents in mm from them, in turn."""
    size: int
    """Side of the model's images."""
    per_volume: int
    """Slices to take of a volume, evenly spaced among those with foreground."""

    def sources(self, folder: Path) -> list[MaskSource]:
        """The masks of all files, sorted by name. UserError: no folder, no masks in it, unusable values."""
        from rich.progress import track

        if not folder.is_dir():
            raise UserError(f"{folder}: not found, expected the folder of masks; correct --masks")
        paths = _mask_paths(folder)
        if not paths:
            raise UserError(
                f"{folder}: found no images ({', '.join(ENDINGS)}), expected masks; correct --masks"
            )
        for path in paths:
            check_name(path.as_posix(), "mask", folder)
        notes = Notes()
        # Threads suffice, as Pillow and SimpleITK release the interpreter's lock.
        with ThreadPoolExecutor(READERS) as pool, dropping_the_rest(pool):
            read = functools.partial(self._file_sources, folder, notes)
            files = pool.map(read, paths, range(len(paths)))
            shown = track(files, "reading masks", len(paths), transient=True, disable=len(paths) < MANY)
            sources = [source for of_file in shown for source in of_file]
        notes.report()
        if not sources:
            raise UserError(
                f"{folder}: found {len(paths)} masks of background only, expected lesions; correct --masks"
            )
        return sources

    def _file_sources(self, folder: Path, notes: Notes, name: Path, number: int) -> list[MaskSource]:
        path = folder / name
        if path.name.lower().endswith(VOLUMES):
            return self._volume_sources(path, name.as_posix())
        read = functools.partial(read_mask, path, self.view.classes)
        mask = read_mask(path, self.view.classes, notes)
        locate = functools.partial(self._borrow, number, mask.shape)
        return [self._source(name.as_posix(), None, mask, read, locate)]

    def _volume_sources(self, path: Path, name: str) -> list[MaskSource]:
        load = functools.partial(read_volume, path, self.view.classes, self._orientation)
        volume, header = load()
        axis = self.view.axis if self.view.is_volumetric else int(np.argmax(header.GetSpacing()[::-1]))
        found = np.flatnonzero(volume.any(axis=tuple({0, 1, 2} - {axis})))
        sources = []
        for index in evenly_spaced(found.tolist(), self.per_volume):
            place = place_of(header, axis, index) if self.view.is_volumetric else None
            sources.append(
                self._source(
                    name,
                    index,
                    volume.take(index, axis),
                    lambda index=index: load()[0].take(index, axis),
                    lambda place=place: place,
                )
            )
        return sources

    def _source(
        self,
        name: str,
        index: int | None,
        mask: np.ndarray,
        read: Callable[[], np.ndarray],
        locate: Callable[[], Geometry | None],
    ) -> MaskSource:
        stem = mask_stem(name)
        case = stem if stem in self._training_ids else None
        small = resize_mask(mask, self.size)
        sha256_at_size = mask_hash(small) if np.ptp(small) else None
        return MaskSource(name, case, stem, index, read, locate, mask_hash(mask), sha256_at_size)

    def _borrow(self, number: int, shape: tuple[int, int]) -> Geometry | None:
        """Place of a training slice, taken in turn, with the mask's pixels spread over its extent."""
        geometry = self.view.geometry(self.slices[number % len(self.slices)])
        return geometry and geometry.resized(shape)

    @cached_property
    def _training_ids(self) -> set[str]:
        return {case.id for case in self.view.dataset.training_cases}

    @cached_property
    def _orientation(self) -> str | None:
        """Orientation of the data set's volumes, such as LPS; None for pictures."""
        if not self.view.is_volumetric:
            return None
        import SimpleITK as sitk

        direction = self.view.geometry(self.slices[0]).direction
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(direction)


def _mask_paths(folder: Path) -> list[Path]:
    """Mask files of a folder, or of its subfolders, as paths below it; a warning names other files."""
    found = images_in(folder, ENDINGS)
    if not found:
        entries = [folder / name for name in visible_files(folder)]
        found = [path for part in entries if part.is_dir() for path in images_in(part, ENDINGS)]
        if found and (files := [path for path in entries if not path.is_dir()]):
            warn_left_out(folder, files, ENDINGS)
    return sorted(path.relative_to(folder) for path in found)


def read_mask(path: Path, classes: Classes, notes: Notes | None = None) -> np.ndarray:
    """Picture of label values (with one class also of 0 and 255) as class numbers, uint8 (Y, X).

    Remarks on the file go into `notes`. UserError: other values, unreadable, JPEG or WebP.
    """
    return _numbers(read_index_mask(path, Notes() if notes is None else notes), path, classes)


@functools.lru_cache(maxsize=1)  # its slices are read one after the other
def read_volume(path: Path, classes: Classes, orientation: str | None) -> tuple[np.ndarray, sitk.Image]:
    """Volume of label values as class numbers, uint8 (Z, Y, X), and its image for spacing and the like.

    Its axes are flipped and swapped into the `orientation` of the data set's volumes. UserError: as for
    `read_mask`, or it is not 3D.
    """
    import SimpleITK as sitk

    check_regular(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be read, expected an intact file; replace it") from error
    if image.GetDimension() != 3:
        raise UserError(f"{path}: found {image.GetDimension()} dimensions, expected a volume of 3; split it")
    if orientation is not None:
        image = sitk.DICOMOrient(image, orientation)
    return _numbers(sitk.GetArrayViewFromImage(image), path, classes), image


def place_of(image: sitk.Image, axis: int, index: int) -> Geometry:
    """Place in space of slice `index` along `axis` of (Z, Y, X)."""
    corner = [0, 0, 0]
    corner[2 - axis] = index
    size = image.GetSize()[::-1]
    shape = tuple(size[other] for other in range(3) if other != axis)
    origin = image.TransformIndexToPhysicalPoint(corner)
    return Geometry(shape, image.GetSpacing(), origin, image.GetDirection(), axis)


def _numbers(label: np.ndarray, path: Path, classes: Classes) -> np.ndarray:
    if classes.count == 1 and np.isin(label, (0, 255)).all():
        return (label > 0).astype(np.uint8)
    odd = np.unique(label[~np.isin(label, (0, *classes.values))])
    if len(odd):
        expected = ", ".join(map(str, classes.values))
        expected = f"0 and {expected}, or 0 and 255" if classes.count == 1 else f"0, {expected}"
        raise UserError(
            f"{path}: found mask values {', '.join(f'{value:g}' for value in odd[:5])}, expected {expected}; "
            "correct it"
        )
    return classes.numbers(label.astype(np.uint8))
