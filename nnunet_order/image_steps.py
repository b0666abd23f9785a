"""What happens to an image before and after a network, in numpy: as nnU-Net does it, without nnU-Net.

The graph of an exported file does the same steps, see `graph`. It is checked against these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from dataset_conversion.images import resize_to
from dataset_conversion.system.errors import UserError
from nnunet_order.onnx_file import OnnxMetadata

TILE_OVERLAP = 0.5
SMALLEST_DEVIATION = 1e-8

Network = Callable[[np.ndarray], np.ndarray]  # normalised image (1, C, H, W), float32, to logits (1, K, H, W)


@dataclass(frozen=True)
class Segmentation:
    """What a model says about an image (H, W)."""

    label_map: np.ndarray
    """(H, W), uint16."""
    probabilities: np.ndarray
    """(K, H, W), float32: of each label, background included, or of each region."""


def segment(image: np.ndarray, metadata: OnnxMetadata, network: Network, whole_image: bool) -> Segmentation:
    """Image (H, W, 3) or (H, W) of grey or RGB values as stored; UserError: values that are too bright.

    An image that is larger than those of the training is shrunk as those were. Its logits are brought back to
    the size of the image before they become labels, as nnU-Net does after resampling.
    """
    small = resize_to(metadata.max_side, image, None)[0] if metadata.max_side is not None else image
    pixels = np.atleast_3d(small).transpose(2, 0, 1).astype(np.float32)  # (C, h, w)
    box = nonzero_box(pixels)
    normalized = normalize(pixels[(slice(None), *box)], metadata)
    logits = tiled_logits(normalized, metadata, network, whole_image)
    border = [(side.start, size - side.stop) for side, size in zip(box, pixels.shape[1:], strict=True)]
    logits = enlarge(np.pad(logits, [(0, 0), *border], mode="edge"), image.shape[:2])
    rows, columns = (
        lies_inside(side, *sizes) for side, *sizes in zip(box, pixels.shape[1:], image.shape[:2], strict=True)
    )
    inside = rows[:, None] & columns
    labels = to_labels(logits, metadata.label_values, metadata.regions_class_order)
    probabilities = to_probabilities(logits, metadata.regions_class_order)
    background = background_probabilities(metadata)[:, None, None]
    return Segmentation(np.where(inside, labels, np.uint16(0)), np.where(inside, probabilities, background))


def tiled_logits(
    image: np.ndarray, metadata: OnnxMetadata, network: Network, whole_image: bool
) -> np.ndarray:
    """(C, H, W), normalised -> logits (K, H, W), from tiles weighted towards their centres.

    `whole_image`: one tile that is as large as the image.
    """
    tile = metadata.patch_size
    if whole_image:
        multiple = metadata.size_multiple
        tile = [
            max(least, -(-side // multiple) * multiple)
            for least, side in zip(tile, image.shape[1:], strict=True)
        ]
    padded, window = pad_to(image, tile)
    weights = centre_weights(tile)
    total = np.zeros((metadata.outputs, *padded.shape[1:]), dtype=np.float32)
    weight_sum = np.zeros(padded.shape[1:], dtype=np.float32)
    for rows, columns in tiles(padded.shape[1:], tile):
        (logits,) = network(padded[None, :, rows, columns])
        total[:, rows, columns] += logits * weights
        weight_sum[rows, columns] += weights
    return (total / weight_sum)[(slice(None), *window)]


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


def to_probabilities(logits: np.ndarray, regions_class_order: Sequence[int] | None) -> np.ndarray:
    """(K, H, W) -> (K, H, W): softmax over labels, sigmoid of regions."""
    if regions_class_order is not None:
        return np.exp(-np.logaddexp(0, -logits))
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def background_probabilities(metadata: OnnxMetadata) -> np.ndarray:
    """(K,) of a pixel that is certainly background: no region, or the first label."""
    background = np.zeros(metadata.outputs, dtype=np.float32)
    background[0] = metadata.regions_class_order is None
    return background


def enlarge(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, h, w) -> (K, H, W) by linear interpolation between pixel centres, as torch and ONNX do it."""
    for axis, length in zip((1, 2), size, strict=True):
        if logits.shape[axis] != length:
            place = (np.arange(length) + 0.5) * logits.shape[axis] / length - 0.5
            place = place.clip(0, logits.shape[axis] - 1)
            before = np.floor(place).astype(int)
            after = np.minimum(before + 1, logits.shape[axis] - 1)
            share = (place - before).astype(np.float32)
            share = share[:, None] if axis == 1 else share
            logits = logits.take(before, axis) * (1 - share) + logits.take(after, axis) * share
    return logits


def lies_inside(box: slice, small: int, full: int) -> np.ndarray:
    """(full,): whether each pixel of a side lies in the `box` of that side shrunk to `small` pixels."""
    place = (np.arange(full) + 0.5) * small / full
    return (place >= box.start) & (place < box.stop)


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
    inside = channel[mask] if mask.any() else channel  # of a black image
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
    rows, columns = tile_profiles(tile)
    return (rows * columns).astype(np.float32)


def tile_profiles(tile: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The Gaussian's factors along rows (H, 1) and along columns (W,), in double precision."""
    rows, columns = (np.exp(-0.5 * ((np.arange(side) - side // 2) / (side / 8)) ** 2) for side in tile)
    return rows[:, None], columns
