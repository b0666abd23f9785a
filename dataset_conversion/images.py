"""Read natural images and masks of any usual file kind into plain uint8 arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.image_files import LOSSY, open_image, opened
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import Range

SIDE = Range(32)  # pixels of an image's longer side; less is too little for any network
MAX_COLOUR_SPREAD = 32  # between the channels of a mask that is meant to be black and white


def read_rgb(path: Path, notes: Notes, upright: bool = True) -> np.ndarray:
    """Image as uint8 (H, W, 3); conversions go into `notes`. UserError: unreadable or not 8 bit."""
    image = open_image(path, notes, upright)
    if _is_high_depth(image):
        raise UserError(
            f"{path}: found {_kind(image)}, expected 8 bit; rescale the image and save it as 8-bit RGB"
        )
    if _has_alpha(image):
        _refuse_transparent(image, path)
        notes.add("opaque alpha channel dropped", path)
    elif image.mode != "RGB":
        notes.add(f"{_kind(image)} converted to RGB", path)
    return np.asarray(image.convert("RGB"))


def read_grey(path: Path, notes: Notes, upright: bool = True) -> np.ndarray:
    """Image as uint8 or uint16 (H, W). UserError: unreadable, coloured, or deeper than 16 bit.

    Not `upright`, as nnU-Net reads it: black and white as 0 and 1, a TIFF with a palette as the indices.
    """
    image = open_image(path, notes, upright)
    if not upright and (image.mode == "1" or (image.mode == "P" and image.format == "TIFF")):
        return np.asarray(image).astype(np.uint8)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max:
            return values.astype(np.uint16)
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    rgb = np.asarray(image.convert("RGB"))
    if _is_high_depth(image) or np.ptp(rgb, axis=2).any():
        raise UserError(f"{path}: found {_kind(image)}, expected grey of 8 or 16 bit; convert the image")
    notes.add(f"{_kind(image)} of equal channels converted to grey", path)
    return rgb[..., 0]


def is_grey(path: Path) -> bool:
    """Whether the file stores one channel of grey values (a palette is colour); reads the header only."""
    with opened(path) as image:
        return image.mode in ("L", "1") or _is_high_depth(image)


def read_binary_mask(path: Path, notes: Notes, threshold: int | None = None) -> np.ndarray:
    """Mask as uint8 (H, W) of 0 and 1, from 0/1 or 0/255; grey pixels are split at 127 and counted.

    With `threshold` (0-254) a pixel is foreground when it is brighter; masks of 0 and 1 stay as they are.
    UserError: JPEG or WebP and no threshold (its edges are not the annotator's), a coloured or partly
    transparent mask, values that are neither 0/1 nor 0/255.
    """
    image = open_image(path, notes)
    if image.format in LOSSY and threshold is None:
        raise UserError(
            f"{path}: found a {image.format} mask, expected a lossless one because {image.format} blurs "
            "edges; give --threshold 127 or save the masks as PNG"
        )
    mask = _grey_levels(image, path)
    highest = int(mask.max(initial=0))
    if highest <= 1 and image.format not in LOSSY:  # a black JPEG has noise of 1
        return mask.astype(np.uint8)
    if threshold is None and highest <= 127:
        raise UserError(
            f"{path}: found values up to {highest}, expected 0/1 or 0/255; name the classes with "
            "--labels background=0 ... or give --threshold"
        )
    if highest > 255:
        if highest < 65535:
            raise UserError(
                f"{path}: found values up to {highest}, expected 0/1, 0/255 or 0/65535; save it as 8-bit PNG"
            )
        mask = mask >> 8
    if undecided := int(((mask > 0) & (mask < 255)).sum()):
        notes.add("mask pixels that were neither black nor white", path, undecided)
    return (mask > (127 if threshold is None else threshold)).astype(np.uint8)


def read_index_mask(path: Path, notes: Notes, upright: bool = True) -> np.ndarray:
    """Mask whose pixel values are the labels, as integers (H, W).

    UserError: JPEG or WebP, coloured (a palette's index is the label), partly transparent, unreadable.
    """
    image = open_image(path, notes, upright)
    if image.format in LOSSY:
        raise UserError(
            f"{path}: found a {image.format} mask, expected a lossless one; export the labels as PNG"
        )
    if image.mode == "P" and image.format != "GIF":  # a GIF of grey levels has a palette, too
        return np.asarray(image)
    return _grey_levels(image, path, spread=0)


def resize_to(
    max_side: int, image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Shrink both so that the longer side is `max_side` px at most: image by LANCZOS, mask by NEAREST."""
    height, width = shrunk_size(max_side, image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image, mask
    size = (width, height)
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if mask is None:
        return small, None
    resized = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return small, np.asarray(resized).astype(mask.dtype)


def shrunk_size(max_side: int, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image after `resize_to`."""
    scale = min(1, max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def _grey_levels(image: Image.Image, path: Path, spread: int = MAX_COLOUR_SPREAD) -> np.ndarray:
    """Pixel values of a mask as integers (H, W); in black and white, channels may be `spread` apart."""
    if image.mode == "P" and _is_coloured(image, spread):
        # Label tools colour the palette, with a transparent background; the index is the label.
        return np.asarray(image)
    _refuse_transparent(image, path)
    if image.mode in ("L", "1"):
        return np.asarray(image).astype(np.uint8)  # mode "1" becomes 0/1
    if _is_high_depth(image):
        values = np.asarray(image)
        outside = values[~((values >= 0) & (values <= np.iinfo(np.uint16).max))]  # NaN, too
        if outside.size:
            value = f"{outside[0]:.0f}"
            if image.mode == "I":  # Pillow has no numbers of 32 bit without sign
                value += f" (or {int(outside[0]) % 2**32} without sign)"
            raise UserError(f"{path}: found the value {value}, expected 0 to 65535; correct the mask")
        if not np.array_equal(values, np.rint(values)):
            raise UserError(
                f"{path}: found fractional values, expected an integer mask; save it as 8-bit PNG"
            )
        return values.astype(np.int32)
    if _is_coloured(image, spread):
        raise UserError(
            f"{path}: found a coloured mask, expected one value per pixel; export it as a grey or index PNG"
        )
    return np.asarray(image.convert("RGB").convert("L"))


def _is_coloured(image: Image.Image, spread: int) -> bool:
    """Whether channels are more than `spread` apart; at all in dark masks: class numbers in one channel."""
    rgb = np.asarray(image.convert("RGB"))
    is_dark = rgb.max() <= 127 and image.format not in LOSSY
    return bool(np.ptp(rgb, axis=2).max() > (0 if is_dark else spread))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _refuse_transparent(image: Image.Image, path: Path) -> None:
    """UserError: pixels that are not opaque, whose colour may be anything."""
    if _has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise UserError(f"{path}: found transparent pixels, expected none; save it without transparency")


def _is_high_depth(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _kind(image: Image.Image) -> str:
    names = {
        "L": "grey",
        "1": "black and white",
        "P": "palette",
        "I": "32-bit",
        "F": "float",
        "I;16": "16-bit grey",
    }
    return f"{names.get(image.mode, image.mode)} image"
