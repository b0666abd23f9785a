"""NIfTI volumes slab by slab: check them, cut slices out of them, write them, never whole in memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError

MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # any other unit is read as mm, as ITK does
HEADER_BYTES = 352  # of a NIfTI-1 file, with the flag that no extension follows
SHEAR = 1e-3  # cosine of two axes' angle that is taken for a rounded right angle
ITK_SHEAR = 5e-5  # that ITK reads without fail; it refuses 1e-4
SAME_READING = 0.01  # of a voxel: how far apart two readers may see a corner of one file


@dataclass(frozen=True)
class Volume:
    """Header of a NIfTI volume; its values stay on disk. `open_volume` makes it."""

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    """(4, 4) from voxel indices to mm, RAS+; the axes are at right angles."""
    has_orientation: bool
    """Whether the header says at all how the patient lies."""
    is_plain: bool
    """Whether all readers see the same geometry, and no scaling of values, in the file as it is."""
    dtype: np.dtype
    offset: int
    slope: float
    inter: float

    @property
    def spacing(self) -> np.ndarray:
        """(3,) in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def corners(self) -> np.ndarray:
        """(8, 3) in mm: the centres of the outermost voxels."""
        return _corners(self.affine, self.shape)


class ValueRange(NamedTuple):
    """Lowest and highest value of a volume, and whether all of its values are whole."""

    low: float
    high: float
    is_whole: bool


def open_volume(path: Path, notes: Notes) -> Volume:
    """Read and check the header of a .nii.gz file; what is odd but clear goes into `notes`.

    UserError: unreadable, not 3D (further axes of length 1 are dropped), colour or complex, sheared axes.
    """
    import nibabel as nib

    with _intact(path):
        image = nib.load(path)
        affine, header, values = image.affine, image.header, image.dataobj
        with gzip.open(path) as file:
            raw = type(header).from_fileobj(file)  # nibabel takes the scaling out of the other one
    if values.dtype.kind not in "iuf":
        kind = "colour" if values.dtype.names else "complex" if values.dtype.kind == "c" else "unknown"
        raise UserError(f"{path}: found {kind} voxels, expected one number each; convert the file")
    shape = tuple(values.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"{path}: found an array of shape {values.shape}, expected 3D; split or convert it")
    if shape != values.shape:
        notes.add("further axes of length 1 dropped", path)
    affine = affine * np.array([MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)] * 3 + [1.0])[:, None]
    _check_axes(affine, path)
    is_clear = _is_consistent(header, affine, path, notes) and _is_read_alike(path, affine, header, notes)
    return Volume(
        path=path,
        shape=shape,
        affine=_at_right_angles(affine, shape),
        has_orientation=_has_orientation(header),
        is_plain=shape == values.shape and _is_unscaled(raw) and is_clear,
        dtype=values.dtype,
        offset=values.offset,
        slope=float(values.slope),
        inter=float(values.inter),
    )


def read_slabs(volume: Volume) -> Iterator[np.ndarray]:
    """Yield the values [:, :, k] for each k, in the order of the file. UserError: NaN or Inf, truncated."""
    size = int(np.prod(volume.shape[:2])) * volume.dtype.itemsize
    with _intact(volume.path), gzip.open(volume.path) as file:
        file.seek(volume.offset)
        for k in range(volume.shape[2]):
            content = file.read(size)
            if len(content) < size:
                raise EOFError(f"it ends in slab {k} of {volume.shape[2]}")
            slab = np.frombuffer(content, volume.dtype).reshape(volume.shape[:2], order="F")
            if (volume.slope, volume.inter) != (1, 0):
                slab = slab * volume.slope + volume.inter
            if slab.dtype.kind == "f" and not np.isfinite(slab).all():
                raise UserError(
                    f"{volume.path}: found NaN or Inf in [:, :, {k}], expected finite values; replace them"
                )
            yield slab
        while file.read(1 << 20):  # gzip compares its checksum at the very end
            pass


def value_range(volume: Volume, rounding: float = 0) -> ValueRange:
    """Read the whole volume for its range; whole values may be `rounding` off. UserError: as `read_slabs`."""
    low, high, is_whole = np.inf, -np.inf, True
    for slab in read_slabs(volume):
        low, high = min(low, slab.min()), max(high, slab.max())
        is_whole = is_whole and (slab.dtype.kind in "iu" or np.abs(slab - np.rint(slab)).max() <= rounding)
    return ValueRange(float(low), float(high), is_whole)


def slices_reaching(volume: Volume, axis: int, value: float) -> np.ndarray:
    """Indices of the slices along `axis` that hold `value` or more."""
    found = np.zeros(volume.shape[axis], bool)
    for k, slab in enumerate(read_slabs(volume)):
        reaches = slab >= value
        if axis == 2:
            found[k] = reaches.any()
        else:
            found |= reaches.any(axis=1 - axis)
    return np.flatnonzero(found)


def evenly_spaced(values: Sequence, count: int) -> list:
    """`count` of the values, the middles of parts of equal length, or all of them where there are fewer.

    Of the slices of a lesion these leave out the ends, where it is smallest.
    """
    count = min(count, len(values))
    return [values[(2 * number + 1) * len(values) // (2 * count)] for number in range(count)]


def read_slices(
    volume: Volume, axis: int, indices: Sequence[int], convert: Callable[[np.ndarray], np.ndarray], dtype
) -> np.ndarray:
    """Slices along `axis` as (slice, other axes in order), `convert`ed by the slab and kept as `dtype`."""
    others = [volume.shape[other] for other in range(3) if other != axis]
    # A slab of the file lies together in memory.
    slices = np.empty((len(indices), *others), dtype, order="C" if axis == 2 else "F")
    place = {index: number for number, index in enumerate(indices)}
    for k, slab in enumerate(read_slabs(volume)):
        if axis < 2:
            slices[:, :, k] = convert(np.moveaxis(slab.take(indices, axis), axis, 0))
        elif k in place:
            slices[place[k]] = convert(slab)
    return slices


def write_volume(
    path: Path,
    shape: tuple[int, int, int],
    dtype,
    affine: np.ndarray,
    slabs: Iterable[np.ndarray],
    has_orientation: bool = True,
) -> None:
    """Write a .nii.gz from its values [:, :, k] in order; the same values give the same bytes.

    Without `has_orientation` the header keeps the spacing only.
    """
    import nibabel as nib

    code = int(has_orientation)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    header.set_slope_inter(1, 0)
    header.set_data_offset(HEADER_BYTES)
    with (
        path.open("wb") as target,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=target, mtime=0) as file,
    ):
        header.write_to(file)
        for slab in slabs:
            file.write(np.asarray(slab, header.get_data_dtype()).tobytes(order="F"))


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """UserError when the file cannot be read."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}), expected an intact NIfTI file; replace it"
        ) from error


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def _check_axes(affine: np.ndarray, path: Path) -> None:
    """UserError unless the axes are of finite length and at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        raise UserError(f"{path}: found voxels of {lengths} mm, expected a length; correct the header")
    if _shear(affine) > SHEAR:
        raise UserError(f"{path}: found sheared axes, expected right angles; resample the volume")


def _shear(affine: np.ndarray) -> float:
    """Largest cosine of the angle between two axes."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def _at_right_angles(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The affine with the nearest axes at right angles; lengths and the volume's centre stay."""
    if _shear(affine) <= ITK_SHEAR:
        return affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    straight = affine.copy()
    straight[:3, :3] = left @ right * lengths
    middle = (np.array(shape) - 1) / 2
    straight[:3, 3] += (affine[:3, :3] - straight[:3, :3]) @ middle
    return straight


def _has_orientation(header) -> bool:
    return bool(header["sform_code"] or header["qform_code"])


def _is_unscaled(header) -> bool:
    """Whether all readers leave the values as they are; ITK adds scl_inter even where the slope is 0."""
    return bool(header["scl_inter"] == 0 and header["scl_slope"] in (0, 1))


def _is_consistent(header, affine: np.ndarray, path: Path, notes: Notes) -> bool:
    """Whether sform, qform and pixdim say the same; nibabel goes by the first of them, others by others."""
    import nibabel as nib

    lengths = nib.affines.voxel_sizes(affine)
    agree = np.allclose(header.get_zooms()[:3], lengths, rtol=1e-3)
    if agree and header["qform_code"] and header["sform_code"]:
        try:
            agree = np.allclose(header.get_qform(), affine, rtol=1e-3, atol=1e-2)
        except ValueError:  # the quaternion is none
            agree = False
    if not agree:
        notes.add("sform, qform, pixdim or unit disagree; nibabel's reading (sform first, mm) written", path)
    return bool(agree)


def _is_read_alike(path: Path, affine: np.ndarray, header, notes: Notes) -> bool:
    """Whether SimpleITK, nnU-Net's first reader, reads the file and sees it where nibabel does."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        notes.add("header that ITK and so nnU-Net refuses, such as axes not quite at right angles", path)
        return False
    spacing = np.array(reader.GetSpacing()[:3])
    if not _has_orientation(header):  # each reader has a place of its own for these
        return np.allclose(spacing, np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-3)
    if reader.GetDimension() != 3:
        return False
    seen = np.eye(4)
    seen[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * spacing
    seen[:3, 3] = reader.GetOrigin()
    seen[:2] *= -1  # ITK's axes point to the left and to the back
    apart = np.abs(_corners(seen, reader.GetSize()) - _corners(affine, reader.GetSize())).max()
    if apart > SAME_READING * spacing.min():
        notes.add("SimpleITK and nibabel read another place; nibabel's reading (sform first) written", path)
        return False
    return True
