"""Which files are images, and how one is opened: in the formats that are meant, with the values as stored."""

from __future__ import annotations

import logging
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageChops, ImageOps, TiffImagePlugin, UnidentifiedImageError

from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import visible_files

logger = logging.getLogger(__name__)

# Pillow knows more formats. For one of them, EPS, it starts a program, whatever the name of the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif")
# MPO is a JPEG with further pictures in it. WebP may be lossless, but a file hardly tells.
LOSSY = ("JPEG", "MPO", "WEBP")
PAGED = ("TIFF", "WEBP", "GIF")
ORIENTATION = ExifTags.Base.Orientation
BACK = {  # how to undo what viewers do for an orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
FAX = (2, 3, 4)  # TIFF's compressions of fax machines
WHITE_IS_ZERO = (
    "white-is-zero TIFF (tag 262 is 0) read as stored, as nnU-Net, tifffile and scikit-image do; viewers "
    "show the inverse, so look at a result, and save the files as PNG if you want what viewers show"
)


def images_in(folder: Path, endings: Sequence[str] = IMAGE_ENDINGS) -> list[Path]:
    """Paths of the files in a folder that have one of these endings, sorted.

    Where there are some, a warning names what else lies there, hidden files apart.
    """
    paths = [folder / name for name in visible_files(folder)]
    images = [path for path in paths if path.name.lower().endswith(tuple(endings))]
    if images and len(images) < len(paths):
        warn_left_out(folder, sorted(set(paths) - set(images)), endings)
    return images


def warn_left_out(folder: Path, paths: Collection[Path], endings: Sequence[str] = IMAGE_ENDINGS) -> None:
    """Log how many of a folder's entries are not read because of their names, and the first of them."""
    names = [path.name + "/" * path.is_dir() for path in paths]
    logger.warning(
        "%s: %d left out that do not end in %s: %s", folder, len(names), " ".join(endings), shortened(names)
    )


def shortened(names: Sequence[str]) -> str:
    """The first five of the names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_regular(path: Path) -> None:
    """UserError: not there, or no file that ends: opening a pipe or reading a device may take for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a file; check the path"
        ) from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, device or socket"
        raise UserError(f"{path}: found a {kind}, expected a file; remove it or correct the path")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header has been read. UserError: none of FORMATS; damaged, which the block may find."""
    check_regular(path)
    try:
        # Not by its path: Pillow maps such a file into memory and garbles a TIFF that is stored on its side.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: cannot be read as {', '.join(FORMATS)}, expected an intact image of one of these "
            "formats; replace the file"
        ) from error
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        reason = f"{error}" or type(error).__name__
        raise UserError(
            f"{path}: cannot be read ({reason}), expected an intact image; replace the file"
        ) from error


def stored_size(path: Path) -> tuple[int, int]:
    """(H, W) of the pixels as stored, from an image's header. UserError: as `opened`."""
    with opened(path) as image:
        is_swapped = image.format == "TIFF" and image.tag_v2.get(ORIENTATION, 1) > 4
        return image.size if is_swapped else image.size[::-1]


def open_image(path: Path, notes: Notes, upright: bool = True) -> Image.Image:
    """Decode a whole file. UserError: unreadable, truncated, several pages; as `_stored_values`.

    `upright`: turn it as its EXIF tag says, as viewers do; nnU-Net takes the pixels as they are stored. The
    grey values of a TIFF are those stored in either case.
    """
    with opened(path) as image:
        # Pillow reads 48-bit PNG as 8-bit RGB without a word; only the decoder's raw mode tells.
        deep = image.mode == "RGB" and any(";16" in str(tile[3]) for tile in image.tile)
        pages = getattr(image, "n_frames", 1) if image.format in PAGED else 1
        turn = image.getexif().get(ORIENTATION, 1)
        image.load()
        turned = ImageOps.exif_transpose(image) if upright else image
        if image.format == "TIFF":
            if not upright and turn in BACK:  # Pillow has turned it in `load`
                turned = image.transpose(BACK[turn])
            turned = _stored_values(turned, image.tag_v2, path, notes, upright)
        turned.format = image.format  # the copies forget it
    if pages > 1:
        raise UserError(
            f"{path}: found {pages} pages, expected one 2D image; save each page as a file of its own"
        )
    if upright and turn != 1:
        notes.add("turned upright as their EXIF tag says; check that image and mask still fit", path)
    if deep:
        notes.add("16-bit colour reduced to 8 bit", path)
    return turned


def _stored_values(
    image: Image.Image, tags: Mapping[int, Any], path: Path, notes: Notes, from_elsewhere: bool
) -> Image.Image:
    """A TIFF with the grey values that the file holds; Pillow inverts those of up to 8 bit if white is zero.

    Of a file `from_elsewhere` it is not known whether they are meant; a remark says what was taken, and 2 and
    4 bit stay spread over 0 to 255. UserError: white-is-zero by the convention of fax machines, for which
    viewers are right; negative values of 8 bit.
    """
    is_signed = 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ())
    if image.mode in ("1", "L") and is_signed and image.getextrema()[1] > 127:
        raise UserError(f"{path}: found negative values, expected 0 to 255; save it as 8-bit PNG")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0:  # absent: Pillow takes it for 0
        if from_elsewhere and tags.get(TiffImagePlugin.COMPRESSION) in FAX:
            raise UserError(
                f"{path}: found a fax-compressed white-is-zero TIFF, which nnU-Net and viewers read as each "
                "other's inverse, expected a file that all read alike; save it as PNG"
            )
        if from_elsewhere:
            notes.add(WHITE_IS_ZERO, path)
        if image.mode in ("1", "L"):
            image = ImageChops.invert(image)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    if image.mode == "L" and bits < 8 and not from_elsewhere:
        step = 255 // (2**bits - 1)
        image = image.point([value // step for value in range(256)])
    return image
