"""Arrays as the bytes of image files, and of volumes of one slice."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from law_synth.view.places import Geometry

FORMATS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}


def encode_picture(pixels: np.ndarray, ending: str) -> bytes:
    """(Y, X) or uint8 (Y, X, 3) as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, FORMATS[ending])
    return buffer.getvalue()


def encode_volume(pixels: np.ndarray, geometry: Geometry, ending: str) -> bytes:
    """(Y, X) as the bytes of a volume of one slice, compressed."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.expand_dims(pixels, geometry.axis))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with tempfile.TemporaryDirectory() as folder:  # SimpleITK writes to paths only
        path = Path(folder) / f"volume{ending}"
        sitk.WriteImage(image, str(path), useCompression=True)
        return path.read_bytes()
