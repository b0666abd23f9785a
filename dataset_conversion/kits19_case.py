"""One KiTS19 case into nnU-Net raw files: as a volume, or as slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_conversion.images import resize_to
from dataset_conversion.notes import Notes
from dataset_conversion.planes import Plane, PlaneName, find_plane, orientation, slice_affine, turned_volume
from dataset_conversion.raw.writer import RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import link_or_copy
from dataset_conversion.volumes import (
    ValueRange,
    Volume,
    evenly_spaced,
    open_volume,
    read_slices,
    slices_reaching,
    value_range,
    write_volume,
)

TUMOUR = 2
LABEL_ROUNDING = 1e-3  # how far nibabel's scaling of floats to int16 puts a label off its number
SAME_PLACE = 0.25  # of a voxel: how far rounded headers may put the label beside its image
# What every reader of NIfTI knows; other types are written anew.
IMAGE_TYPES = ("uint8", "int16", "uint16", "int32", "float32", "float64")
LABEL_TYPES = ("uint8", "int8", "int16", "uint16", "int32")


class SliceOptions(NamedTuple):
    """See the options of `ConvertKits19`; `window` is None to keep HU."""

    axis: PlaneName
    which: str
    per_case: int | None
    window: tuple[float, float] | None
    max_side: int | None


@dataclass(frozen=True)
class Kits19Case:
    """One patient: the scan and, of training cases, its segmentation."""

    id: str
    image: Path
    label: Path | None

    @property
    def stamp(self) -> list:
        """Changes when a file does."""
        states = [path.stat() for path in (self.image, self.label) if path is not None]
        return [[state.st_size, state.st_mtime_ns] for state in states]


def check_headers(case: Kits19Case, axis: PlaneName | None) -> str | None:
    """Orientation of a case's image, None where its header is silent.

    UserError: as `open_case`, and for slices along `axis` a header that does not say how it lies.
    """
    image, _ = open_case(case, Notes())
    if axis is not None:
        find_plane(image, axis)
    return orientation(image)


def open_case(case: Kits19Case, notes: Notes) -> tuple[Volume, Volume | None]:
    """Headers of image and label. UserError: also different sizes, or places more than rounding apart."""
    image = open_volume(case.image, notes)
    if case.label is None:
        return image, None
    label = open_volume(case.label, notes)
    if label.shape != image.shape:
        raise UserError(
            f"{case.label}: found size {label.shape}, expected the image's {image.shape}; restore the files"
        )
    oriented = image.has_orientation and label.has_orientation
    apart = np.abs(label.corners - image.corners if oriented else label.spacing - image.spacing).max()
    if apart > SAME_PLACE * image.spacing.min():
        what = "lying" if oriented else "with voxels"
        raise UserError(
            f"{case.label}: found it {what} {apart:.3g} mm off its image (spacing {label.spacing.round(4)} "
            f"and {image.spacing.round(4)} mm), expected the same geometry; correct the header that is wrong"
        )
    return image, label


def convert_volume(
    case: Kits19Case, writer: RawDatasetWriter, target: str | None, notes: Notes
) -> tuple[list[str], bool]:
    """Check a case and link, copy or rewrite its files -> ([case id], whether it has foreground).

    Its axes are brought into the orientation `target` where its header says how the patient lies.
    """
    image, label = open_case(case, notes)
    values = value_range(image)
    _note_units(values, image, notes)
    part = "Ts" if label is None else "Tr"
    turns = orientation(image) not in (None, target)
    if turns:
        notes.add(f"axes brought into the order {target} of most volumes, for nnU-Net's 2d", image.path)
    elif not image.has_orientation:
        notes.add("header does not say how the patient lies: axes may differ from other volumes'", image.path)
    path, is_known = writer.image_path(part, case.id), image.dtype.name in IMAGE_TYPES
    if image.is_plain and is_known and not turns:
        link_or_copy(image.path, path)
    else:
        dtype = image.dtype.newbyteorder("=")
        if not (image.is_plain and is_known):
            notes.add("image written anew as int16 or float32 with a plain header", image.path)
            dtype = np.int16 if values.is_whole and fits_int16(values.low, values.high) else np.float32
        _write_anew(image, path, target if turns else None, dtype)
    if label is None:
        return [case.id], False
    has_foreground = check_label(label)
    path, is_known = writer.label_path(part, case.id), label.dtype.name in LABEL_TYPES
    placed = replace(label, affine=image.affine, has_orientation=image.has_orientation)
    is_same = np.array_equal(label.affine, image.affine) and label.has_orientation == image.has_orientation
    if label.is_plain and is_known and is_same and not turns:
        link_or_copy(label.path, path)
    else:
        if not (label.is_plain and is_known and is_same):
            notes.add("label written anew as uint8 with the image's geometry", label.path)
        _write_anew(placed, path, target if turns else None, np.uint8, np.rint)
    return [case.id], has_foreground


def _write_anew(
    volume: Volume,
    path: Path,
    target: str | None,
    dtype,
    convert: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Write a volume with a plain header, in the orientation `target` (None: its own)."""
    turned = turned_volume(volume, target, dtype, convert)
    write_volume(path, turned.shape, dtype, turned.affine, turned.slabs, volume.has_orientation)


def convert_slices(
    case: Kits19Case, writer: RawDatasetWriter, options: SliceOptions, notes: Notes
) -> tuple[list[str], bool]:
    """Check a case and write its slices -> (ids of the slice cases, whether any has foreground)."""
    image, label = open_case(case, notes)
    plane = find_plane(image, options.axis)
    indices = chosen_slices(image, label, plane, options)
    has_foreground = label is not None and check_label(label)
    if not indices:
        notes.add("no slice with foreground: left out", case.image)
        return [], False
    _note_spacing(image, plane, options, notes)
    _note_units(value_range(image), image, notes)
    pixels = read_pixels(image, plane, indices, options.window)
    masks = None
    if label is not None:
        masks = read_slices(label, plane.slices, indices, np.rint, np.uint8)
    case_ids = []
    for number, index in enumerate(indices):
        case_id = f"{case.id}_s{index:04d}"
        picture = plane.turned(pixels[number])
        mask = None if masks is None else plane.turned(masks[number])
        if mask is not None and mask.any() and np.ptp(picture) == 0:
            raise UserError(_without_contrast(image, plane, index, options.window))
        write_slice(writer, case_id, picture, mask, slice_affine(image, plane, index), options)
        case_ids.append(case_id)
    return case_ids, has_foreground


def _without_contrast(image: Volume, plane: Plane, index: int, window: tuple[float, float] | None) -> str:
    """Message on a slice with kidney or tumour whose picture has a single value."""
    stored = read_slices(image, plane.slices, [index], np.asarray, np.float64)
    found = f"{image.path}: found values from {stored.min():g} to {stored.max():g} in slice {index}"
    if window is None:
        return f"{found}, which is labelled, expected a picture; restore the scan"
    return (
        f"{found}, which is labelled and becomes a single grey in the window {window[0]:g} to {window[1]:g}, "
        "expected HU; subtract what was added to them (often 1024) or give another --window"
    )


def chosen_slices(image: Volume, label: Volume | None, plane: Plane, options: SliceOptions) -> list[int]:
    """Indices along the slice axis of the file; of a case without a label from all slices."""
    if label is None or options.which == "all":
        found = np.arange(image.shape[plane.slices])
    else:
        least = TUMOUR if options.which == "lesion" else 1
        found = slices_reaching(label, plane.slices, least - LABEL_ROUNDING)
    chosen = found.tolist()
    return chosen if options.per_case is None else evenly_spaced(chosen, options.per_case)


def read_pixels(
    image: Volume, plane: Plane, indices: list[int], window: tuple[float, float] | None
) -> np.ndarray:
    """Slices as uint8 in the window, or as int16 in HU. UserError: values outside int16."""

    def to_grey(slab: np.ndarray) -> np.ndarray:
        low, high = window
        return np.rint((np.clip(slab.astype(np.float32), low, high) - low) * (255 / (high - low)))

    def to_int16(slab: np.ndarray) -> np.ndarray:
        if not fits_int16(slab.min(), slab.max()):
            raise UserError(
                f"{image.path}: found values from {slab.min():g} to {slab.max():g}, expected HU as int16; "
                "correct them"
            )
        return np.rint(slab) if slab.dtype.kind == "f" else slab

    convert, dtype = (to_int16, np.int16) if window is None else (to_grey, np.uint8)
    return read_slices(image, plane.slices, indices, convert, dtype)


def write_slice(
    writer: RawDatasetWriter,
    case_id: str,
    picture: np.ndarray,
    mask: np.ndarray | None,
    affine: np.ndarray,
    options: SliceOptions,
) -> None:
    """Write (rows, columns) of a slice and its labels as two PNG, or as .nii.gz of one slice each."""
    from PIL import Image

    part = "Ts" if mask is None else "Tr"
    targets = {writer.image_path(part, case_id): picture}
    if mask is not None:
        targets[writer.label_path(part, case_id)] = mask
    if options.window is None:
        for path, pixels in targets.items():
            write_volume(path, (*pixels.shape[::-1], 1), pixels.dtype, affine, [pixels.T])
        return
    if options.max_side is not None:
        targets = dict(zip(targets, resize_to(options.max_side, picture, mask), strict=False))
    for path, pixels in targets.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def check_label(label: Volume) -> bool:
    """Whether a label volume has foreground. UserError: other values than 0, 1, 2."""
    low, high, is_whole = value_range(label, LABEL_ROUNDING)
    if not is_whole or np.rint(low) < 0 or np.rint(high) > TUMOUR:
        kind = "" if is_whole else "fractional "
        raise UserError(
            f"{label.path}: found {kind}values from {low:g} to {high:g}, expected 0 background, 1 kidney, "
            "2 tumour; restore the segmentation"
        )
    return bool(np.rint(high) > 0)


def fits_int16(low: float, high: float) -> bool:
    """Whether rounded values of this range are int16."""
    return bool(np.iinfo(np.int16).min <= low <= high <= np.iinfo(np.int16).max)


def _note_spacing(image: Volume, plane: Plane, options: SliceOptions, notes: Notes) -> None:
    thickness, *pixel = image.spacing[list(plane[:3])]
    if options.window is not None and not np.isclose(*pixel, rtol=0.01):
        notes.add("pixels are not square, which PNG cannot say; --keep-hu keeps their spacing", image.path)
    if options.window is None and thickness < max(pixel):
        # Its planner takes the axis of the largest median spacing for that of the slices.
        notes.add("slices thinner than pixels; if most are, nnU-Net's 2d cuts across them", image.path)


def _note_units(values: ValueRange, image: Volume, notes: Notes) -> None:
    if values.low >= 0:
        notes.add("no value below 0, so perhaps not in HU", image.path)
