"""The verb `predict`: label maps from images by an exported model, without nnU-Net and without torch."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from dataset_conversion.image_files import IMAGE_ENDINGS, images_in
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.files import write_atomically
from nnunet_order.onnx_file import OnnxMetadata
from nnunet_order.onnx_model import OnnxModel
from nnunet_order.options import Predict

logger = logging.getLogger(__name__)


def predict(options: Predict) -> None:
    """Write a label map for each image. UserError: bad images, a file there already, no exported model."""
    options.check()
    files = image_files(options.images)
    targets = target_files(files, options.out)
    check_writable(targets[0])
    model = OnnxModel(options.model, options.whole_image, options.device)
    notes = Notes()
    start = time.perf_counter()
    for file, target in track(list(zip(files, targets, strict=True)), "predict"):
        image = model.read(file, notes)
        if model.is_far_off(image):
            notes.add(other_scale(model.metadata), file)
        write_label_map(target, model(image))
    rate = len(files) / (time.perf_counter() - start)
    notes.report()
    logger.info("%s: %d label maps, %.1f images/s", options.out, len(files), rate)


def other_scale(metadata: OnnxMetadata) -> str:
    """The remark on images whose scale is far off that of the training."""
    height, width = metadata.median_size
    remedy = (
        "their data set does not say whether they were shrunk; if they were, shrink these alike"
        if metadata.max_side is None
        else f"larger ones are shrunk to {metadata.max_side} px as in training, but none is enlarged"
    )
    return (
        f"another scale than the training images, which are {width} x {height} px in the median without "
        f"black borders ({remedy})"
    )


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The image files meant by `--images`; UserError: none, missing, or of an unknown kind."""
    files = list(paths)
    if len(files) == 1 and files[0].is_dir():
        files = images_in(files[0])
    if not files:
        raise UserError(
            f"--images: found no image, expected files ending in {', '.join(IMAGE_ENDINGS)}; check the path"
        )
    for path in files:
        if not path.is_file() or path.suffix.lower() not in IMAGE_ENDINGS:
            raise UserError(
                f"{path}: found no image file, expected one ending in {', '.join(IMAGE_ENDINGS)}; correct "
                "--images"
            )
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
