"""How law_synth sees an nnU-Net raw data set: as 2D RGB images with masks of class numbers.

A 2D data set is seen as it is. Of volumes, the slices along the axis of the largest spacing are seen, which
are those that nnU-Net's 2d configuration trains on; a synthetic case is then a volume of one slice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_conversion import image_files
from dataset_conversion.raw.cases import COLOUR_ENDINGS
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.geometry import Grid, read_grid
from dataset_conversion.system.errors import UserError
from dataset_conversion.volumes import evenly_spaced
from law_synth.view.classes import Classes, lesion_classes
from law_synth.view.encoding import encode_picture, encode_volume
from law_synth.view.places import Geometry
from law_synth.view.record import ViewRecord
from law_synth.view.window import Window, find_window

PICTURE_SPACING = (999.0, 1.0, 1.0)  # what nnU-Net's reader of natural images says
FIXED_SCALES = ("ct", "nonorm", "rgb_to_0_1")  # names of channels for which nnU-Net looks at no single case


class Slice(NamedTuple):
    """One 2D image: a case of a 2D data set, or one slice of a volume."""

    case: str
    index: int | None = None  # along the slice axis; None in a 2D data set

    @property
    def id(self) -> str:
        return self.case if self.index is None else f"{self.case}_s{self.index:04d}"


def refuse_shared_ids(dataset: RawDataset) -> None:
    """UserError: a test case has the id of a training case, and could not be told from it."""
    training = {case.id for case in dataset.training_cases}
    if shared := sorted(training.intersection(case.id for case in dataset.test_cases)):
        raise UserError(
            f"{dataset.folder}: found case {shared[0]} ({len(shared)} such) in imagesTr and in imagesTs, "
            "expected ids of their own; rename the test cases"
        )


class SliceView:
    """A raw data set as slices; `view_of` and `view_from` make it. Safe to call from several threads.

    The last volume read is kept: walk its slices one after the other.

    Args:
        window: from stored values to the model's, and back.
        axis: of the slices in arrays (Z, Y, X); None for 2D files.

    UserError: as `refuse_shared_ids`.
    """

    def __init__(self, dataset: RawDataset, window: Window, axis: int | None = None):
        self.dataset, self.window, self.axis = dataset, window, axis
        refuse_shared_ids(dataset)
        self.classes: Classes = lesion_classes(dataset)
        self._cases = {case.id: case for case in (*dataset.training_cases, *dataset.test_cases)}
        self._last: dict[str, tuple[str, np.ndarray]] = {}
        self._grids: dict[str, Grid] = {}
        self._lock = threading.RLock()

    @property
    def is_volumetric(self) -> bool:
        """Whether the files have a place in space: volumes, not pictures."""
        return self.axis is not None

    @property
    def normalized_by_case(self) -> list[str]:
        """Channels of volumes that nnU-Net scales by each case's own values, be it a volume or one slice."""
        by_case = (name for name in self.dataset.channel_names if name.casefold() not in FIXED_SCALES)
        return [*by_case] if self.is_volumetric else []

    @property
    def record(self) -> ViewRecord:
        """What a base or a run writes down of it, for `view_from`."""
        classes = dict(zip(self.classes.names, self.classes.values, strict=True))
        return ViewRecord(self.window, self.axis, classes)

    def slices(self, case_ids: Iterable[str], per_case: int | None = None) -> list[Slice]:
        """Slices of the cases, in their order: of volumes those with foreground, `per_case` evenly spaced.

        All slices of a volume without a label; the one image of a 2D case.
        """
        if not self.is_volumetric:
            return [Slice(case_id) for case_id in case_ids]
        return [Slice(case_id, index) for case_id in case_ids for index in self._chosen(case_id, per_case)]

    def read(self, slice_: Slice) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 (Y, X, 3), mask of class numbers uint8 (Y, X). UserError: as `RawDataset.read_case`."""
        image, mask = self.read_rgb(slice_), self.read_mask(slice_)
        if image.shape[:2] != mask.shape:
            raise UserError(
                f"{self._cases[slice_.case].label}: found size {mask.shape}, expected the image's "
                f"{image.shape[:2]} (Y, X); export image and label at the same size"
            )
        return image, mask

    def read_rgb(self, slice_: Slice) -> np.ndarray:
        """Image as the model sees it, uint8 (Y, X, 3). UserError: as `RawDataset.read_image`; not 8 bit."""
        pixels = self.read_pixels(slice_)
        if self.window.is_identity and (pixels.min() < 0 or pixels.max() > 255):
            raise UserError(
                f"{self._cases[slice_.case].images[0]}: found values from {pixels.min():g} to "
                f"{pixels.max():g}, expected 8 bit (0 to 255) as in the first image; store all images alike"
            )
        return self.window.to_rgb(pixels)

    def read_mask(self, slice_: Slice) -> np.ndarray:
        """Class numbers uint8 (Y, X). UserError: as `RawDataset.read_label`."""
        label = self._volume("label", slice_.case)
        return self.classes.numbers(self._cut(label, slice_))

    def stored_size(self, slice_: Slice) -> tuple[int, int]:
        """(H, W) of an image, from its header. UserError: unreadable."""
        if self.is_volumetric:
            return self.geometry(slice_).shape
        return image_files.stored_size(self._cases[slice_.case].images[0])

    def read_pixels(self, slice_: Slice) -> np.ndarray:
        """Stored values, float32 (C, Y, X)."""
        return np.stack([self._cut(channel, slice_) for channel in self._volume("image", slice_.case)])

    def geometry(self, slice_: Slice) -> Geometry | None:
        """Where the slice lies; None in a 2D data set."""
        if not self.is_volumetric:
            return None
        grid = self._grid(slice_.case)
        moved = [0, 0, 0]
        moved[2 - self.axis] = slice_.index
        spacing = grid.spacing[::-1]
        direction = np.array(grid.direction).reshape(3, 3)
        origin = np.array(grid.origin) + direction @ (np.array(spacing) * moved)
        shape = tuple(grid.shape[axis] for axis in range(3) if axis != self.axis)
        return Geometry(shape, spacing, tuple(origin.tolist()), grid.direction, self.axis)

    def as_volume(self, pixels: np.ndarray) -> np.ndarray:
        """(C, Y, X) -> (C, Z, Y, X) with one slice, as nnU-Net's reader gives it."""
        return np.expand_dims(pixels, 1 + (self.axis or 0))

    def as_slice(self, volume: np.ndarray) -> np.ndarray:
        """Label map (Z, Y, X) of one slice -> (Y, X)."""
        return np.take(volume, 0, axis=self.axis or 0)

    def spacing(self, geometry: Geometry | None) -> tuple[float, ...]:
        """Spacing (3,) as nnU-Net's reader gives it."""
        return PICTURE_SPACING if geometry is None else tuple(geometry.spacing[::-1])

    def encode(
        self, case_id: str, image: np.ndarray, mask: np.ndarray, geometry: Geometry | None = None
    ) -> dict[str, bytes]:
        """Files of a case, name below the raw folder -> content, images before the label.

        Image (Y, X, 3) in [0, 255], mask (Y, X) of class numbers; a volume's `geometry` has that shape.
        """
        ending, pixels = self.dataset.file_ending, self.window.from_rgb(image)
        label = self.classes.labels(mask)
        if self.is_volumetric:
            files = [encode_volume(channel, geometry, ending) for channel in pixels]
            encoded_label = encode_volume(label, geometry, ending)
        else:
            one_colour_file = len(pixels) == 3 and pixels.dtype == np.uint8  # Pillow has no other RGB
            pictures = [np.moveaxis(pixels, 0, -1)] if one_colour_file else list(pixels)
            files = [encode_picture(picture, ending) for picture in pictures]
            encoded_label = encode_picture(label, ending)
        named = {f"imagesTr/{case_id}_{channel:04d}{ending}": file for channel, file in enumerate(files)}
        return named | {f"labelsTr/{case_id}{ending}": encoded_label}

    def _chosen(self, case_id: str, per_case: int | None) -> list[int]:
        if self._cases[case_id].label is None:
            found = np.arange(self._grid(case_id).shape[self.axis])
        else:
            label = self._volume("label", case_id)
            others = tuple(axis for axis in range(3) if axis != self.axis)
            found = np.flatnonzero((label > 0).any(axis=others))
        chosen = found.tolist()
        return chosen if per_case is None else evenly_spaced(chosen, per_case)

    def _grid(self, case_id: str) -> Grid:
        """Of a case's first image; kept, as some of nnU-Net's readers read the whole file for it."""
        with self._lock:
            if case_id not in self._grids:
                self._grids[case_id] = volume_grid(self.dataset, self._cases[case_id].images[0])
            return self._grids[case_id]

    def _volume(self, kind: str, case_id: str) -> np.ndarray:
        """Image (C, Z, Y, X) or label (Z, Y, X) of a case; the last one is kept."""
        with self._lock:
            if self._last.get(kind, ("",))[0] != case_id:
                self._last.pop(kind, None)  # before the next one is there
                case = self._cases[case_id]
                read = (
                    self.dataset.read_image(case) if kind == "image" else self.dataset.read_label(case.label)
                )
                self._last[kind] = case_id, read
            return self._last[kind][1]

    def _cut(self, volume: np.ndarray, slice_: Slice) -> np.ndarray:
        """(Z, Y, X) -> (Y, X). UserError: a volume in a 2D data set."""
        if self.axis is not None:
            return np.take(volume, slice_.index, axis=self.axis)
        if len(volume) > 1:
            raise UserError(
                f"{self.dataset.folder}: found {self.dataset.file_ending} volumes of {len(volume)} slices, "
                "expected 2D pictures; store volumes as .nii.gz"
            )
        return volume[0]


def view_of(
    dataset: RawDataset, case_ids: Sequence[str], window: tuple[float, float] | None = None
) -> SliceView:
    """The view that training cases settle. UserError: files that law_synth cannot see."""
    lesion_classes(dataset)
    return SliceView(dataset, find_window(dataset, case_ids, window), slice_axis(dataset, case_ids))


def view_from(dataset: RawDataset, record: ViewRecord) -> SliceView:
    """The view that a base or a run has recorded. UserError: other classes or channels than now."""
    view = SliceView(dataset, record.window, record.axis)
    if view.record.classes != record.classes:
        raise UserError(
            f"{dataset.folder}: found the classes {view.record.classes}, expected {record.classes} as "
            "recorded in training; restore dataset.json or train again"
        )
    limits, channels = (len(record.window.low), len(record.window.high)), len(dataset.channel_names)
    if limits != (channels, channels):
        raise UserError(
            f"{dataset.folder}: found {channels} channels, expected {limits[0]} as the window recorded in "
            "training has; restore dataset.json or train again"
        )
    return view


def slice_axis(dataset: RawDataset, case_ids: Sequence[str]) -> int | None:
    """Axis (Z, Y, X) of the largest median spacing, the first of equals, as nnU-Net plans; None for pictures.

    UserError: files without three axes.
    """
    if dataset.file_ending in COLOUR_ENDINGS:
        return None
    grids = [volume_grid(dataset, dataset.case(case_id).images[0]) for case_id in case_ids]
    return int(np.argmax(np.median([grid.spacing for grid in grids], axis=0)))


def volume_grid(dataset: RawDataset, path: Path) -> Grid:
    """As `read_grid`. UserError: also a file of two axes."""
    grid = read_grid(dataset, path)
    if grid.is_picture:
        raise UserError(
            f"{path}: found 2 dimensions, expected a volume of 3; store 2D images as .png, or as volumes of "
            "one slice"
        )
    return grid
