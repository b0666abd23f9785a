"""Images without outlines for a distillation, and which of them belong to a validation or test case."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.folder import case_id, list_images
from dataset_conversion.images import read_grey, read_rgb, resize_to
from dataset_conversion.notes import Notes
from dataset_conversion.raw.cases import Case, cases_in
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.held_out import group_by_name, held_out_groups, unseen_cases
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import link_or_copy
from dataset_conversion.system.folders import visible_files
from dataset_conversion.system.names import match_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnlabelledImage:
    """An image without outlines."""

    case_id: str
    """Its id in the data set to write."""
    files: tuple[Path, ...]
    """One for each channel if it `is_raw`, else one picture."""
    is_raw: bool
    """Whether the files are taken as they are; a picture is read, and shrunk like those of the data set."""
    group: str | None = None
    """Its patient or sequence; None where that is not known."""


def find_unlabelled(folders: Sequence[Path], dataset: RawDataset) -> list[UnlabelledImage]:
    """The images of all folders, sorted by id.

    UserError: no such folder, no image in it, an id twice.
    """
    found: dict[str, UnlabelledImage] = {}  # by what makes two file names one on some machine
    for image in (image for folder in folders for image in _images_of(folder, dataset)):
        other = found.setdefault(match_key(image.case_id), image)
        if other is not image:
            raise UserError(
                f"{image.files[0]}: found a second image of the id {image.case_id} beside {other.files[0]}, "
                "expected different names; rename one of them"
            )
    return sorted(found.values(), key=lambda image: image.case_id)


def _images_of(folder: Path, dataset: RawDataset) -> list[UnlabelledImage]:
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, expected a folder of images; correct --unlabelled")
    names, first = visible_files(folder), f"_0000{dataset.file_ending}"
    as_is = dataset.holds_volumes or len(dataset.training_cases[0].images) > 1
    # Frames of a video are often numbered, clip_0000.png, clip_0001.png, ...: those are pictures.
    if as_is or (names and all(name.endswith(first) for name in names)):
        cases = cases_in(folder, dataset.file_ending, len(dataset.channel_names))
        if not cases:
            raise UserError(f"{folder}: found no image, expected files like case{first}; check the path")
        return [UnlabelledImage(case.id, case.images, as_is) for case in cases]
    if len(dataset.channel_names) not in (1, 3):
        raise UserError(
            f"{folder}: found pictures for a data set of {len(dataset.channel_names)} channels, expected "
            f"files like case_0000{dataset.file_ending} for each channel; name them so"
        )
    return [
        UnlabelledImage(case_id(stem), (path,), is_raw=False) for stem, path in list_images(folder).items()
    ]


def write_unlabelled(
    image: UnlabelledImage, dataset: RawDataset, folder: Path, max_side: int | None, notes: Notes
) -> list[Path]:
    """Write the files of an image into `folder`, in the data set's format. UserError: unreadable.

    Returns:
        The files, in channel order.
    """
    ending = dataset.file_ending
    targets = [folder / f"{image.case_id}_{channel:04d}{ending}" for channel in range(len(image.files))]
    if image.is_raw:
        for source, target in zip(image.files, targets, strict=True):
            link_or_copy(source, target)
        for spacing in dataset.spacing_files(Case(image.case_id, image.files, None)).values():
            link_or_copy(spacing, folder / f"{image.case_id}.json")
        return targets
    (source,), (target,) = image.files, targets
    pixels = (read_rgb if len(dataset.channel_names) == 3 else read_grey)(source, notes)
    if max_side is not None:
        pixels, _ = resize_to(max_side, pixels, None)
    Image.fromarray(np.ascontiguousarray(pixels)).save(target)
    return targets


def pixel_hash(image: np.ndarray) -> str:
    """sha256 of an image as nnU-Net reads it, float32 (C, Z, Y, X)."""
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image, dtype=np.float32).tobytes())
    return digest.hexdigest()


class HeldOutImages:
    """Finds out which unlabelled images belong to validation or test cases, by name, group and pixels.

    Args:
        training: ids of the cases of `dataset` that the student may see.
        groups: group by file name, where the names do not tell it.
    """

    def __init__(self, dataset: RawDataset, training: Collection[str], groups: Mapping[str, str]):
        self.dataset = dataset
        self._given = {match_key(case_id(name)): group for name, group in groups.items()}
        self._unseen = unseen_cases(dataset, training)
        self._keys = {match_key(name): name for name in self._unseen}
        self._groups = held_out_groups(dataset, training)
        self._hashes: dict[str, str] = {}

    def with_groups(self, images: Sequence[UnlabelledImage]) -> list[UnlabelledImage]:
        """The images, each with its group as far as it is known; a warning counts the others."""
        found = [replace(image, group=self._group(image)) for image in images]
        if unknown := sum(image.group is None for image in found):
            logger.warning(
                "%d of %d unlabelled images are named after no case or group of %s: make sure that none is "
                "of a patient of its validation or test cases; --unlabelled-groups says whose they are",
                *(unknown, len(found), self.dataset.folder.name),
            )
        return found

    def reason(self, image: UnlabelledImage) -> str | None:
        """What makes it a held-out one by name or group."""
        if name := self._keys.get(match_key(image.case_id)):
            return f"named after {name}"
        if image.group in self._groups:
            return f"of {image.group}, as {self._groups[image.group]} is"
        return None

    def read_pixels(self) -> None:
        """Read the images of all validation and test cases, for `copied`."""
        for case in self._unseen.values():
            self._hashes[pixel_hash(self.dataset.read_image(case))] = case.id

    def copied(self, sha256: str) -> str | None:
        """The validation or test case that has these pixels."""
        return self._hashes.get(sha256)

    def _group(self, image: UnlabelledImage) -> str | None:
        by_name = group_by_name(image.case_id, self.dataset, self._groups)
        given = self._given.get(match_key(image.case_id))
        if by_name in self._groups or given is None:
            return by_name
        return self.dataset.groups_by_key.get(match_key(given), given)
