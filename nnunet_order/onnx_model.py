"""A model that `nnunet-order export` wrote, run as nnU-Net would run it, but without nnU-Net and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset_conversion.image_files import opened
from dataset_conversion.images import read_grey, read_rgb
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from nnunet_order.onnx_file import INSTALL_HINT, OnnxMetadata, read_properties

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NATURAL_ENDINGS = (".png", ".bmp", ".tif")  # of data sets whose pixels have no physical size
TILE_OVERLAP = 0.5
SMALLEST_DEVIATION = 1e-8


class OnnxModel:
    """An exported model: `model(image)` is the label map. Several threads may call it at once.

    UserError: no exported model, or a normalisation or kind of data set that is not supported.
    """

    def __init__(self, file: Path, whole_image: bool = False, device: Literal["cpu", "cuda"] = "cpu"):
        self.session = open_session(file, device)
        self.metadata = read_properties(self.session.get_modelmeta().custom_metadata_map, file)
        self.whole_image = whole_image
        self.channels = len(self.metadata.channel_names)
        if reason := unsupported(self.metadata):
            raise UserError(f"{file}: {reason}; use nnUNetv2_predict")

    def read(self, path: Path, notes: Notes) -> np.ndarray:
        """Read an image file as the model wants it, (H, W, 3) or (H, W); UserError for other images.

        A JPEG and other files that nnU-Net does not take are turned upright as at conversion.
        """
        is_foreign = path.suffix.lower() not in (*NATURAL_ENDINGS, ".tiff")
        if self.channels == 1:
            return read_grey(path, notes, upright=is_foreign)
        pixels = read_rgb(path, notes, upright=is_foreign)
        with opened(path) as image:
            if image.mode in ("1", "L", "LA"):  # perhaps one of an image's three files, nnU-Net's other way
                raise UserError(f"{path}: found a grey image, expected RGB as in training; convert it")
        return pixels

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Image (H, W, 3) or (H, W) of grey or RGB values as stored, to its label map (H, W), uint16."""
        pixels = np.atleast_3d(image).transpose(2, 0, 1).astype(np.float32)  # (C, H, W)
        label_map = np.zeros(pixels.shape[1:], dtype=np.uint16)
        box = nonzero_box(pixels)
        logits = self._logits(normalize(pixels[(slice(None), *box)], self.metadata))
        label_map[box] = to_labels(logits, self.metadata.label_values, self.metadata.regions_class_order)
        return label_map

    def _logits(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W), normalised -> logits (K, H, W), from tiles weighted towards their centres."""
        tile = self.metadata.patch_size
        if self.whole_image:
            multiple = self.metadata.size_multiple
            tile = [
                max(least, -(-side // multiple) * multiple)
                for least, side in zip(tile, image.shape[1:], strict=True)
            ]
        padded, window = pad_to(image, tile)
        weights = centre_weights(tile)
        classes = self.session.get_outputs()[0].shape[1]
        total = np.zeros((classes, *padded.shape[1:]), dtype=np.float32)
        weight_sum = np.zeros(padded.shape[1:], dtype=np.float32)
        for rows, columns in tiles(padded.shape[1:], tile):
            (logits,) = self.session.run(None, {"image": padded[None, :, rows, columns]})
            total[:, rows, columns] += logits[0] * weights
            weight_sum[rows, columns] += weights
        return (total / weight_sum)[(slice(None), *window)]


def unsupported(metadata: OnnxMetadata) -> str:
    """Why a model of this metadata cannot run here; "" if it can."""
    channels, ending = len(metadata.channel_names), metadata.file_ending
    if ending not in NATURAL_ENDINGS or channels not in (1, 3):
        kinds = ", ".join(NATURAL_ENDINGS)
        return f"found a model of {channels}-channel {ending} images, expected grey or RGB ones of {kinds}"
    unknown = sorted(set(metadata.normalization_schemes) - set(NORMALIZATIONS))
    known = ", ".join(NORMALIZATIONS)
    return f"found the normalisation {', '.join(unknown)}, expected {known}" if unknown else ""


def open_session(file: Path, device: Literal["cpu", "cuda"]) -> Any:
    """The onnxruntime session of a file; UserError: package, file or device missing, or no ONNX file."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"found no package onnxruntime, expected it for predict; run: {INSTALL_HINT}"
        ) from None
    if not file.is_file():
        raise UserError(f"{file}: found no file, expected one that nnunet-order export wrote; check --model")
    provider = PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UserError(
            f"found {', '.join(available)} in onnxruntime, expected {provider}; choose another --device"
        )
    try:
        session = onnxruntime.InferenceSession(file, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file}: cannot be opened ({reason}), expected an ONNX file that nnunet-order export wrote; "
            "check --model"
        ) from error
    if provider not in session.get_providers():  # it falls back to the CPU with a warning
        raise UserError(
            f"found no libraries that {provider} of onnxruntime {onnxruntime.__version__} needs, expected "
            "its CUDA and cuDNN; install those, or give --device cpu"
        )
    return session


def to_labels(
    logits: np.ndarray, label_values: Sequence[int], regions_class_order: Sequence[int] | None
) -> np.ndarray:
    """(K, H, W) -> (H, W): the largest logit's label; of regions, the last with probability > 0.5."""
    if regions_class_order is None:
        return np.array(label_values, dtype=np.uint16)[logits.argmax(axis=0)]
    label_map = np.zeros(logits.shape[1:], dtype=np.uint16)
    for region_logits, value in zip(logits, regions_class_order, strict=True):
        label_map[region_logits > 0] = value
    return label_map


def normalize(image: np.ndarray, metadata: OnnxMetadata) -> np.ndarray:
    """Normalise each channel of (C, H, W) by its scheme of the plans, as nnU-Net does."""
    # nnU-Net fills the holes of volumes; in an image, one slice, none is closed.
    inside = (image != 0).any(axis=0)
    channels = []
    for index, channel in enumerate(image):
        scheme = NORMALIZATIONS[metadata.normalization_schemes[index]]
        properties = metadata.intensity_properties.get(str(index), {})
        mask = inside if metadata.use_mask_for_norm[index] else np.ones_like(inside)
        channels.append(scheme(channel, mask, properties))
    return np.stack(channels)


def zscore(channel: np.ndarray, mask: np.ndarray, properties: dict) -> np.ndarray:
    """Zero mean and unit deviation inside the mask; pixels outside stay as they are (zero)."""
    inside = channel[mask]
    scaled = (channel - inside.mean()) / max(inside.std(), SMALLEST_DEVIATION)
    return np.where(mask, scaled, channel)


def clipped_zscore(channel: np.ndarray, mask: np.ndarray, properties: dict) -> np.ndarray:
    """CT: clip to the training foreground's percentiles, then scale by its mean and deviation."""
    clipped = np.clip(channel, properties["percentile_00_5"], properties["percentile_99_5"])
    return (clipped - properties["mean"]) / max(properties["std"], SMALLEST_DEVIATION)


def unchanged(channel: np.ndarray, mask: np.ndarray, properties: dict) -> np.ndarray:
    """No normalisation."""
    return channel


def rescale(channel: np.ndarray, mask: np.ndarray, properties: dict) -> np.ndarray:
    """Smallest value to 0, largest to 1."""
    shifted = channel - channel.min()
    return shifted / max(shifted.max(), SMALLEST_DEVIATION)


def from_eight_bit(channel: np.ndarray, mask: np.ndarray, properties: dict) -> np.ndarray:
    """0..255 to 0..1; UserError for brighter values."""
    if channel.max() > 255:
        raise UserError(
            f"found pixel values up to {channel.max():.0f}, expected at most 255; rescale the images"
        )
    return channel / 255


NORMALIZATIONS = {
    "ZScoreNormalization": zscore,
    "CTNormalization": clipped_zscore,
    "NoNormalization": unchanged,
    "RescaleTo01Normalization": rescale,
    "RGBTo01Normalization": from_eight_bit,
}


def nonzero_box(image: np.ndarray) -> tuple[slice, slice]:
    """Smallest box with all pixels that are not black in every channel of (C, H, W); all of a black image.

    nnU-Net crops to it before it normalises: the black frame of an endoscope must not shift the mean.
    """
    bright = (image != 0).any(axis=0)
    if not bright.any():
        return slice(0, bright.shape[0]), slice(0, bright.shape[1])
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def pad_to(image: np.ndarray, least: Sequence[int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Pad (C, H, W) with zeros to at least `least`, the image in the middle; also where the image lies."""
    missing = [max(0, size - side) for size, side in zip(least, image.shape[1:], strict=True)]
    before = [pixels // 2 for pixels in missing]
    padding = [(first, pixels - first) for first, pixels in zip(before, missing, strict=True)]
    top, left = (slice(first, first + side) for first, side in zip(before, image.shape[1:], strict=True))
    return np.pad(image, [(0, 0), *padding]), (top, left)


def tiles(size: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles that cover `size` evenly, neighbours overlapping by half a tile or more."""
    starts = []
    for length, side in zip(size, tile, strict=True):
        count = int(np.ceil((length - side) / (side * (1 - TILE_OVERLAP)))) + 1
        starts.append(np.round(np.linspace(0, length - side, count)).astype(int))
    for top, left in product(*starts):
        yield slice(top, top + tile[0]), slice(left, left + tile[1])


def centre_weights(tile: Sequence[int]) -> np.ndarray:
    """Gaussian of 1/8 of the side around the tile's centre, largest value 1: (H, W)."""
    profiles = [np.exp(-0.5 * ((np.arange(side) - side // 2) / (side / 8)) ** 2) for side in tile]
    return np.outer(*profiles).astype(np.float32)
