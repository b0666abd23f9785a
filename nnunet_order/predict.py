"""The verb `predict`: label maps from images by an exported model, without nnU-Net and without torch."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import track

from dataset_conversion.image_files import IMAGE_ENDINGS, images_in, opened
from dataset_conversion.images import read_grey, read_rgb
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.files import write_atomically
from nnunet_order.export import INSTALL_HINT, METADATA_KEY

logger = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NATURAL_ENDINGS = (".png", ".bmp", ".tif")  # of data sets whose pixels have no physical size
TILE_OVERLAP = 0.5
SMALLEST_DEVIATION = 1e-8


@dataclass(frozen=True)
class Predict:
    """Segment images with an exported model; writes one PNG label map per image.

    Equals `nnUNetv2_predict --disable_tta` but for single boundary pixels: nnU-Net adds up its tiles in
    half precision. JPEG, WebP and GIF are turned upright as their EXIF tag says; nnU-Net does not read them.
    """

    model: Path
    """File that `nnunet-order export` wrote."""
    images: tuple[Path, ...]
    """Images, or one folder of images. When all names end in _0000, as nnU-Net wants, the results' do not."""
    out: Path
    """Folder for the label maps; existing files are never replaced."""
    whole_image: bool = False
    """One pass over each image instead of nnU-Net's overlapping tiles: faster for images a little larger than
    the patch, but ORDER's memory grows with the squared area (17 GiB for one 1920x1080 frame)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; cuda needs the package onnxruntime-gpu."""

    def run(self) -> None:
        files = image_files(self.images)
        targets = target_files(files, self.out)
        check_writable(targets[0])
        segmenter = Segmenter(self.model, self.whole_image, self.device)
        notes = Notes()
        start = time.perf_counter()
        for file, target in track(list(zip(files, targets, strict=True)), "predict"):
            write_label_map(target, segmenter(segmenter.read(file, notes)))
        rate = len(files) / (time.perf_counter() - start)
        notes.report()
        logger.info("%s: %d label maps, %.1f images/s", self.out, len(files), rate)


class Segmenter:
    """An exported model: `segmenter(image)` is the label map. Safe to call from several threads.

    Raises UserError: no exported model, a normalisation or data set kind that is not supported.
    """

    def __init__(self, model: Path, whole_image: bool = False, device: Literal["cpu", "cuda"] = "cpu"):
        self.session = open_session(model, device)
        properties = self.session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in properties:
            raise UserError(f"{model}: found no {METADATA_KEY} metadata; write it with nnunet-order export")
        self.record: dict[str, Any] = json.loads(properties[METADATA_KEY])
        self.whole_image = whole_image
        self.channels = len(self.record["channel_names"])
        if reason := unsupported(self.record):
            raise UserError(f"{model}: {reason}; use nnUNetv2_predict")

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
        label_map[box] = to_labels(
            self._logits(normalize(pixels[(slice(None), *box)], self.record)), self.record
        )
        return label_map

    def _logits(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W), normalised -> logits (K, H, W), from tiles weighted towards their centres."""
        tile = self.record["patch_size"]
        if self.whole_image:
            multiple = self.record["size_multiple"]
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


def unsupported(record: dict[str, Any]) -> str:
    """Why a model of this metadata cannot run here; "" if it can."""
    channels, ending = len(record["channel_names"]), record["file_ending"]
    if ending not in NATURAL_ENDINGS or channels not in (1, 3):
        kinds = ", ".join(NATURAL_ENDINGS)
        return f"trained on {channels}-channel {ending} images, expected grey or RGB ones of {kinds}"
    unknown = sorted(set(record["normalization_schemes"]) - set(NORMALIZATIONS))
    return f"found normalisation {', '.join(unknown)}" if unknown else ""


def warn_if_unsupported(record: dict[str, Any]) -> None:
    """Say so when a model cannot run here, as those of volumes: resampling is nnU-Net's."""
    if reason := unsupported(record):
        logger.warning("%s; nnunet-order predict cannot run it, your own program may", reason)


def open_session(model: Path, device: Literal["cpu", "cuda"]) -> Any:
    """The onnxruntime session of a file; UserError: package, file or device missing, or no ONNX file."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"found no package onnxruntime, predict needs it; {INSTALL_HINT}") from None
    if not model.is_file():
        raise UserError(f"{model}: found no file, expected one that nnunet-order export wrote")
    provider = PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UserError(
            f"found no {provider} in onnxruntime, only {', '.join(available)}; choose another --device"
        )
    try:
        session = onnxruntime.InferenceSession(model, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{model}: cannot be opened ({reason}), expected an ONNX file") from error
    if provider not in session.get_providers():  # it falls back to the CPU with a warning
        raise UserError(
            f"found no libraries that {provider} of onnxruntime {onnxruntime.__version__} needs, expected "
            "its CUDA and cuDNN; install those, or give --device cpu"
        )
    return session


def to_labels(logits: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    """(K, H, W) -> (H, W): the largest logit's label; of regions, the last with probability > 0.5."""
    order = record["regions_class_order"]
    if order is None:
        return np.array(record["label_values"], dtype=np.uint16)[logits.argmax(axis=0)]
    label_map = np.zeros(logits.shape[1:], dtype=np.uint16)
    for region_logits, value in zip(logits, order, strict=True):
        label_map[region_logits > 0] = value
    return label_map


def normalize(image: np.ndarray, record: dict[str, Any]) -> np.ndarray:
    """Normalise each channel of (C, H, W) by its scheme of the plans, as nnU-Net does."""
    # nnU-Net fills the holes of volumes; in an image, one slice, none is closed.
    inside = (image != 0).any(axis=0)
    channels = []
    for index, channel in enumerate(image):
        scheme = NORMALIZATIONS[record["normalization_schemes"][index]]
        properties = record["intensity_properties"].get(str(index), {})
        mask = inside if record["use_mask_for_norm"][index] else np.ones_like(inside)
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
            f"found pixel values up to {channel.max():.0f}, expected 8 bit; rescale the images to 0..255"
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


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The image files meant by `--images`; UserError: none, missing, or of an unknown kind."""
    files = list(paths)
    if len(files) == 1 and files[0].is_dir():
        files = images_in(files[0])
    if not files:
        raise UserError(f"--images: found no image, expected files ending in {', '.join(IMAGE_ENDINGS)}")
    for path in files:
        if not path.is_file() or path.suffix.lower() not in IMAGE_ENDINGS:
            raise UserError(f"{path}: found no image file, expected one ending in {', '.join(IMAGE_ENDINGS)}")
    return files


def target_files(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each label map goes; UserError when two images share a name or a file is already there."""
    stems = [path.stem for path in files]
    if all(stem.endswith("_0000") for stem in stems):
        stems = [stem.removesuffix("_0000") for stem in stems]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"found two images named {twice}, expected unique names; rename one")
    targets = [out / f"{stem}.png" for stem in stems]
    for target in targets:
        if target.exists():
            raise UserError(f"{target}: found an older file, expected none; give another --out or remove it")
    return targets


def write_label_map(path: Path, label_map: np.ndarray) -> None:
    """Write a label map as PNG of 8 bit, or 16 where labels need it, under a temporary name first."""
    pixels = label_map.astype(np.uint8) if label_map.max() <= 255 else label_map
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_atomically(path, content.getvalue())
