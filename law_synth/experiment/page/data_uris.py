"""Arrays as small JPEG and PNG data URIs: photos with outlines, masks, maps."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST, SMALLEST = 256, 96  # sides of a thumbnail in pixels
PIXELS = 9_000_000  # of all photos; about a third of a byte each makes 4 MB of base64

Painted = Sequence[tuple[np.ndarray, str]]  # boolean masks (H, W) and their colours, later ones on top


def thumbnail_side(photos: int) -> int:
    """Side at which so many photos keep the page small."""
    return int(np.clip(math.isqrt(PIXELS // max(photos, 1)), SMALLEST, LARGEST))


def photo(image: np.ndarray, side: int, outlines: Painted = (), aspect: float = 1.0) -> str:
    """Image (H, W) or (H, W, 3) in [0, 1] with outlines -> JPEG of at most `side`.

    `aspect`: height of a pixel by its width.
    """
    picture = Image.fromarray((255 * np.clip(image, 0, 1)).round().astype(np.uint8)).convert("RGB")
    size = _fit(picture.size, side, aspect)
    # Twice the size while drawing: shrinking it smooths the outlines.
    large = np.array(picture.resize((2 * size[0], 2 * size[1]), Image.Resampling.BICUBIC))
    for mask, colour in outlines:
        large[_edge(mask, large.shape[:2], width=3)] = rgb(colour)
    stream = io.BytesIO()
    final = Image.fromarray(large).resize(size, Image.Resampling.BOX)
    final.save(stream, "JPEG", quality=80, subsampling=0, optimize=True)  # 4:4:4 keeps thin lines' colours
    return _uri("jpeg", stream)


def mask_picture(masks: Painted, side: int, aspect: float = 1.0) -> str:
    """Boolean masks (H, W) as shapes on black, PNG."""
    numbers = np.zeros(masks[0][0].shape, np.uint8)
    for number, (mask, _) in enumerate(masks, 1):
        numbers[mask] = number
    picture = Image.fromarray(numbers)
    picture = picture.resize(_fit(picture.size, side, aspect), Image.Resampling.NEAREST)
    picture.putpalette([0, 0, 0, *(part for _, colour in masks for part in rgb(colour))])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, bits=1 if len(masks) == 1 else 8)
    return _uri("png", stream)


def map_picture(values: np.ndarray) -> str:
    """Map (h, w) in [0, 1] in viridis, PNG of one pixel per value; the page enlarges it."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.clip(values, 0, 1), bytes=True)[..., :3]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(stream, "PNG", optimize=True)
    return _uri("png", stream)


def rgb(colour: str) -> list[int]:
    """#rrggbb -> [r, g, b]."""
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def _fit(size: tuple[int, int], side: int, aspect: float) -> tuple[int, int]:
    """Width and height with the longer side `side`; small pictures are enlarged, outlines need the room."""
    width, height = size[0], size[1] * aspect
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _edge(mask: np.ndarray, shape: tuple[int, int], width: int) -> np.ndarray:
    """The inner rim of a mask enlarged to `shape`."""
    from scipy.ndimage import binary_erosion

    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.BILINEAR)
    large = np.array(enlarged) > 127
    return large & ~binary_erosion(large, np.ones((3, 3)), iterations=width)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
