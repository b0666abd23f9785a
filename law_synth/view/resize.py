"""How images and masks come to the model's square size."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (Y, X, 3) -> (size, size, 3), a plain Lanczos resize without crop, as ADC does."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 mask (Y, X) of class numbers -> (size, size) or `size` = (height, width), nearest neighbour."""
    height, width = (size, size) if isinstance(size, int) else size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
