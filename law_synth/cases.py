"""Cases of an nnU-Net raw data set as the diffusion model sees them: square RGB images and lesion masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from dataset_conversion.raw import COLOUR_ENDINGS, Case, RawDataset
from dataset_conversion.user_error import UserError

if TYPE_CHECKING:
    from torch import Tensor

Fold = int | Literal["all"]


def lesion_label(dataset: RawDataset) -> int:
    """Value of the one foreground label. UserError: several labels, regions, ignore label, not 2D images."""
    if dataset.file_ending not in COLOUR_ENDINGS:
        raise UserError(
            f"{dataset.folder}: found {dataset.file_ending} files, expected one of "
            f"{', '.join(COLOUR_ENDINGS)}; law-synth works on 2D images of 8 bit, convert the slices to .png"
        )
    channels = len(dataset.channel_names)
    if channels not in (1, 3):
        raise UserError(f"{dataset.folder}: found {channels} channels, expected 1 (grey) or 3 (RGB)")
    values = set(dataset.label_values) - {0}
    if len(values) != 1 or dataset.ignore_label is not None:
        raise UserError(
            f"{dataset.folder}: found labels {dataset.json['labels']}, expected background and one lesion "
            "label; make a data set with one label per lesion class"
        )
    return values.pop()


def read_rgb_case(dataset: RawDataset, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Image as uint8 (Y, X, 3), grey repeated, and lesion mask of 0 and 1 as uint8 (Y, X).

    UserError: as `RawDataset.read_case`; pixels that are not whole numbers from 0 to 255.
    """
    image, label = dataset.read_case(case)
    pixels = np.moveaxis(image[:, 0], 0, -1)  # (Y, X, C)
    if pixels.min() < 0 or pixels.max() > 255:
        raise UserError(
            f"{case.images[0]}: found values from {pixels.min():g} to {pixels.max():g}, expected 8 bit "
            "(0 to 255); rescale the images"
        )
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)
    return rgb, (label[0] == lesion_label(dataset)).astype(np.uint8)


def to_channels(image: np.ndarray, dataset: RawDataset) -> np.ndarray:
    """RGB image (Y, X, 3) -> what the data set stores, uint8: itself, or its rounded mean (Y, X) for grey."""
    if len(dataset.channel_names) == 3:
        return image
    return np.rint(image.mean(-1)).astype(np.uint8)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (Y, X, 3) -> (size, size, 3), a plain Lanczos resize without crop, as ADC does."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 mask (Y, X) -> (size, size) or `size` = (height, width), nearest neighbour."""
    height, width = (size, size) if isinstance(size, int) else size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def condition(masks: np.ndarray) -> Tensor:
    """Masks of 0 and 1 (N, S, S) -> what the ControlNet sees, float (N, 3, S, S): three equal channels."""
    import torch

    return torch.from_numpy(masks).float()[:, None].expand(-1, 3, -1, -1)


def fold_cases(dataset: RawDataset, fold: Fold) -> tuple[list[str], list[str]]:
    """Training and validation case ids of one fold as nnU-Net splits them; `all` has no validation cases.

    UserError: no such fold.
    """
    if fold == "all":
        return [case.id for case in dataset.training_cases], []
    splits = dataset.read_splits()
    if not 0 <= fold < len(splits):
        raise UserError(
            f"found --fold {fold}, expected 0 to {len(splits) - 1} or all; {dataset.folder.name} has "
            f"{len(splits)} folds"
        )
    return sorted(splits[fold]["train"]), sorted(splits[fold]["val"])
