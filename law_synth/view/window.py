"""From a data set's own intensities to the 0..255 that the diffusion model sees, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.image_files import check_regular, opened
from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.errors import UserError

PERCENTILES = (0.5, 99.5)  # what nnU-Net's CTNormalization clips foreground intensities to
MARGIN = 0.1  # of the width, added at both ends: synthetic cases must not move those percentiles
SAMPLES_PER_CASE = 10_000  # pixels that the percentiles are estimated from, as in nnU-Net's fingerprint
SAMPLE_SEED = 1234


@dataclass(frozen=True)
class Window:
    """Linear map of each channel's [low, high] to [0, 255]; `find_window` makes it.

    The autoencoder has three channels: one channel goes in three times and comes out as their mean.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str
    """NumPy name of the stored type."""

    def to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """Stored values (C, Y, X) -> uint8 (Y, X, 3); what lies outside becomes black or white."""
        scaled = (np.moveaxis(pixels, 0, -1) - np.array(self.low)) * (255 / self._width)
        grey = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))

    def from_rgb(self, image: np.ndarray) -> np.ndarray:
        """Image (Y, X, 3) in [0, 255], whole numbers or not -> (C, Y, X) in the data set's units and type."""
        channels = image if len(self.low) == 3 else image.mean(-1, keepdims=True)
        values = np.moveaxis(channels * (self._width / 255) + np.array(self.low), -1, 0)
        kind = np.dtype(self.dtype)
        if np.issubdtype(kind, np.integer):
            values = np.clip(np.rint(values), np.iinfo(kind).min, np.iinfo(kind).max)
        return np.ascontiguousarray(values.astype(kind))

    @property
    def is_identity(self) -> bool:
        """Whether the values are seen as they are, as those of 8-bit files."""
        return self.dtype == "uint8" and set(self.low) == {0.0} and set(self.high) == {255.0}

    @property
    def _width(self) -> np.ndarray:
        return np.array(self.high) - np.array(self.low)


def find_window(
    dataset: RawDataset, case_ids: Sequence[str], given: tuple[float, float] | None = None
) -> Window:
    """The window of a data set, from these cases only, which must be training cases.

    8-bit files are seen as they are. A channel named CT gets the 0.5 to 99.5 percentile of the foreground,
    widened by a tenth at both ends; any other channel that of all pixels. UserError: no such range.
    """
    cases = [dataset.case(case_id) for case_id in case_ids]
    dtype = np.result_type(*{stored_dtype(case) for case in cases}).name  # one that holds every case's values
    if given is not None:
        ranges = [given] * len(dataset.channel_names)
    elif dtype == "uint8":
        ranges = [(0.0, 255.0)] * len(dataset.channel_names)
    else:
        ranges = _percentile_ranges(dataset, cases)
    for name, (low, high) in zip(dataset.channel_names, ranges, strict=True):
        if not low < high:
            raise UserError(
                f"{dataset.folder}: found values of channel {name} from {low:g} to {high:g}, expected a "
                "range; give --window LOW HIGH"
            )
    low, high = zip(*ranges, strict=True)
    return Window(tuple(map(float, low)), tuple(map(float, high)), dtype)


def stored_dtype(case: Case) -> str:
    """NumPy type of a case's image file, from its header. UserError: unreadable."""
    path = case.images[0]
    try:
        return _dtype_in_header(path)
    except (OSError, RuntimeError) as error:
        reason = f"{error}".strip().split("\n")[0]
        raise UserError(f"{path}: cannot be read ({reason}), expected an intact file; replace it") from error


def _dtype_in_header(path: Path) -> str:
    if path.suffix in (".png", ".bmp", ".tif"):
        with opened(path) as image:
            deep = "int32" if image.format == "TIFF" else "uint16"  # PNG has no more than 16 bit
            return {"I;16": "uint16", "I;16B": "uint16", "I": deep, "F": "float32"}.get(image.mode, "uint8")
    import SimpleITK as sitk

    check_regular(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        if not path.name.endswith(".nii.gz"):
            raise
        return _dtype_by_nibabel(path)  # as nnU-Net, which turns to it where ITK refuses a header
    kinds = {
        sitk.sitkUInt8: "uint8",
        sitk.sitkInt8: "int8",
        sitk.sitkUInt16: "uint16",
        sitk.sitkInt16: "int16",
        sitk.sitkUInt32: "uint32",
        sitk.sitkInt32: "int32",
        sitk.sitkFloat64: "float64",
    }
    return kinds.get(reader.GetPixelID(), "float32")


def _dtype_by_nibabel(path: Path) -> str:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        values = nibabel.load(path).dataobj
    except (ImageFileError, ValueError) as error:
        raise OSError(error) from error
    is_scaled = (values.slope, values.inter) != (1, 0)
    return "float32" if is_scaled or values.dtype.kind not in "iuf" else values.dtype.name


def _percentile_ranges(dataset: RawDataset, cases: Sequence[Case]) -> list[tuple[float, float]]:
    """Lowest and highest value to show of each channel."""
    from rich.progress import track

    generator = np.random.default_rng(SAMPLE_SEED)
    samples: list[list[tuple[bool, np.ndarray]]] = [[] for _ in dataset.channel_names]
    for case in track(cases, "looking at intensities", transient=True):
        image, label = dataset.read_case(case)
        for name, channel, found in zip(dataset.channel_names, image, samples, strict=True):
            of_foreground = name.lower() == "ct" and bool((label > 0).any())
            values = channel[label > 0] if of_foreground else channel.ravel()
            found.append((of_foreground, generator.choice(values, SAMPLES_PER_CASE)))
    ranges = []
    for found in samples:
        # As nnU-Net's fingerprint, nothing of a CT volume without foreground: that is mostly air.
        foreground = [values for of_foreground, values in found if of_foreground]
        low, high = np.percentile(np.concatenate(foreground or [values for _, values in found]), PERCENTILES)
        margin = MARGIN * (high - low)
        ranges.append((float(low - margin), float(high + margin)))
    return ranges
