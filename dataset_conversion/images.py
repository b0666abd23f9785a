"""Read natural images and masks of any usual file kind into plain uint8 arrays."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dataset_conversion.user_error import UserError

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)  # what Pillow raises on bad files
MAX_COLOUR_SPREAD = 32  # between the channels of a mask that is meant to be black and white


class Notes:
    """Remarks on files, counted from any thread and said once per kind."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._pixels: Counter[str] = Counter()
        self._examples: dict[str, Path] = {}
        self._lock = threading.Lock()

    def add(self, remark: str, path: Path, pixels: int = 0) -> None:
        """Count one file, and so many of its pixels, to which `remark` applies."""
        with self._lock:
            self._files[remark] += 1
            self._pixels[remark] += pixels
            self._examples.setdefault(remark, path)

    def report(self) -> None:
        """Log each remark once, with its number of files and pixels and one example."""
        for remark, files in sorted(self._files.items()):
            pixels = f", {self._pixels[remark]} pixels" if self._pixels[remark] else ""
            example = Path(*self._examples[remark].parts[-2:])
            logger.warning("%s: %d file(s)%s, e.g. %s", remark, files, pixels, example)


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
    """Image as uint8 or uint16 (H, W). UserError: unreadable, coloured, or deeper than 16 bit."""
    image = open_image(path, notes, upright)
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
    try:
        with Image.open(path) as image:
            return image.mode in ("L", "1") or _is_high_depth(image)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read ({error}), expected an intact image; replace the file"
        ) from error


def read_binary_mask(path: Path, notes: Notes, threshold: int | None = None) -> np.ndarray:
    """Mask as uint8 (H, W) of 0 and 1, from 0/1 or 0/255; grey pixels are split at 127 and counted.

    With `threshold` (0-254) a pixel is foreground when it is brighter; masks of 0 and 1 stay as they are.
    UserError: JPEG and no threshold (its edges are not the annotator's), a coloured or partly transparent
    mask, values that are neither 0/1 nor 0/255.
    """
    image = open_image(path, notes)
    if image.format == "JPEG" and threshold is None:
        raise UserError(
            f"{path}: found a JPEG mask, expected a lossless one because JPEG blurs its edges; "
            "give --threshold 127 or save the masks as PNG"
        )
    mask = _grey_levels(image, path)
    highest = int(mask.max(initial=0))
    if highest <= 1 and image.format != "JPEG":  # a black JPEG has noise of 1
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

    UserError: JPEG, coloured (a palette's index is the label), partly transparent, unreadable.
    """
    image = open_image(path, notes, upright)
    if image.format == "JPEG":
        raise UserError(f"{path}: found a JPEG mask, expected a lossless one; export the labels as PNG")
    return np.asarray(image) if image.mode == "P" else _grey_levels(image, path, spread=0)


def check_max_side(max_side: int | None) -> None:
    """UserError when a verb's --max-side is too small for any network."""
    if max_side is not None and max_side < 32:
        raise UserError(f"found --max-side {max_side}, expected 32 px or more; give a larger one")


def resize_to(
    max_side: int, image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Shrink both so that the longer side is `max_side` px at most: image by LANCZOS, mask by NEAREST."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image, mask
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if mask is None:
        return small, None
    resized = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return small, np.asarray(resized).astype(mask.dtype)


def open_image(path: Path, notes: Notes, upright: bool = True) -> Image.Image:
    """Decode a whole file. UserError: unreadable, truncated, several pages.

    `upright`: turn it as its EXIF tag says, as viewers do; nnU-Net takes the pixels as they are stored.
    """
    try:
        with Image.open(path) as image:
            # Pillow reads 48-bit PNG as 8-bit RGB without a word; only the decoder's raw mode tells.
            deep = image.mode == "RGB" and any(";16" in str(tile[3]) for tile in image.tile)
            image.load()
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            turned = ImageOps.exif_transpose(image) if upright else image
            turned.format = image.format  # exif_transpose forgets it
            is_turned = upright and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read ({error}), expected an intact image; replace the file"
        ) from error
    if pages > 1:
        raise UserError(
            f"{path}: found {pages} pages, expected one 2D image; save each page as a file of its own"
        )
    if is_turned:
        notes.add("turned upright as their EXIF tag says; check that image and mask still fit", path)
    if deep:
        notes.add("16-bit colour reduced to 8 bit", path)
    return turned


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
        if not np.array_equal(values, values.astype(np.int32)):
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
    is_dark = rgb.max() <= 127 and image.format != "JPEG"
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
