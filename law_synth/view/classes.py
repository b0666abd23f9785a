"""The lesion classes of a data set, and the colours in which the ControlNet sees them.

A mask inside law_synth is a uint8 map of class numbers: 0 background, 1 to K the classes in the order of
their label values. With one class it is the mask of 0 and 1 that the paper conditions on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw.cases import COLOUR_ENDINGS
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

VOLUME_ENDINGS = (".nii.gz", ".nrrd", ".mha", ".gipl")  # that nnU-Net's SimpleITKIO reads
READERS = (None, "NaturalImage2DIO", "SimpleITKIO", "NibabelIO")  # that keep the axes of the file


@dataclass(frozen=True)
class Classes:
    """The label values other than background, sorted; `lesion_classes` makes it."""

    names: tuple[str, ...]
    values: tuple[int, ...]

    @property
    def count(self) -> int:
        """K, background not counted."""
        return len(self.values)

    def numbers(self, label: np.ndarray) -> np.ndarray:
        """Label map in the data set's values -> class numbers 0 to K, uint8 of the same shape."""
        table = np.zeros(max(self.values) + 1, np.uint8)
        table[list(self.values)] = np.arange(1, self.count + 1)
        return table[label]

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """Class numbers -> the data set's label values, uint8 of the same shape."""
        return np.array((0, *self.values), np.uint8)[mask]


def lesion_classes(dataset: RawDataset) -> Classes:
    """Classes of a data set that law_synth can work on.

    A value of a data set with regions is named after the smallest region that holds it. UserError: an ignore
    label, no classes or too many, files other than pictures and volumes, neither 1 nor 3 channels.
    """
    _check_files(dataset)
    if dataset.ignore_label is not None:
        raise UserError(
            f"{dataset.folder}: found an ignore label, expected a label for every pixel: a synthetic image "
            "has no unknown parts; make a data set of the fully labelled cases"
        )
    values = tuple(value for value in dataset.label_values if value != 0)
    colours(len(values))
    if not values or max(values) > np.iinfo(np.uint8).max:
        raise UserError(
            f"{dataset.folder}: found labels {dataset.json['labels']}, expected background and classes of "
            "values up to 255; correct dataset.json"
        )
    named = [min((len(held), name) for name, held in dataset.regions.items() if v in held)[1] for v in values]
    names = [n if named.count(n) == 1 else f"{n} {v}" for n, v in zip(named, values, strict=True)]
    return Classes(tuple(names), values)


def _check_files(dataset: RawDataset) -> None:
    """UserError: files or channels that no RGB image can be made of."""
    known = (*COLOUR_ENDINGS, *VOLUME_ENDINGS)
    if dataset.file_ending not in known:
        raise UserError(
            f"{dataset.folder}: found {dataset.file_ending} files, expected one of {', '.join(known)}; "
            "convert them"
        )
    if (reader := dataset.json.get("overwrite_image_reader_writer")) not in READERS:
        raise UserError(
            f"{dataset.folder}: found the reader {reader}, which turns images, expected "
            f"{' or '.join(filter(None, READERS))}; store the images in one orientation and drop it"
        )
    if (channels := len(dataset.channel_names)) not in (1, 3):
        raise UserError(
            f"{dataset.folder}: found {channels} channels, expected 1 (grey) or 3, the channels of the "
            "autoencoder; make a data set of one of them"
        )


def colours(count: int) -> np.ndarray:
    """Colour of background and each of `count` classes, float32 (count + 1, 3) in [0, 1].

    Black, and white for a single class: the three equal channels of the paper's code. Several classes take
    the corners of the RGB cube (red, green, blue, yellow, magenta, cyan, white), then its half-way points:
    in a corner each class is a channel of its own. UserError: more than 26.
    """
    black = (0.0, 0.0, 0.0)
    if count == 1:
        return np.array([black, (1.0, 1.0, 1.0)], np.float32)
    corners = sorted(product((1.0, 0.0), repeat=3), key=sum)  # stable: red before green before blue
    palette = [*corners, *(c for c in product((1.0, 0.5, 0.0), repeat=3) if c not in corners)]
    if count >= len(palette):
        raise UserError(f"found {count} classes, expected {len(palette) - 1} at most; merge some")
    return np.array(palette[: count + 1], np.float32)


def condition(masks: np.ndarray, count: int) -> Tensor:
    """Class numbers (N, S, S) -> what the ControlNet sees, float (N, 3, S, S) in [0, 1]."""
    import torch

    return torch.from_numpy(colours(count)[masks]).permute(0, 3, 1, 2)


def one_hot(masks: Tensor, count: int) -> Tensor:
    """Class numbers (N, S, S) -> one channel per class without background, float (N, K, S, S)."""
    import torch

    numbers = torch.arange(1, count + 1, device=masks.device, dtype=masks.dtype)
    return (masks[:, None] == numbers[:, None, None]).float()


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
