"""Any folder of images and folder of masks into nnU-Net raw format."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from dataset_conversion.image_files import IMAGE_ENDINGS, images_in, shortened
from dataset_conversion.images import (
    SIDE,
    is_grey,
    read_binary_mask,
    read_grey,
    read_index_mask,
    read_rgb,
    resize_to,
)
from dataset_conversion.notes import Notes
from dataset_conversion.raw.finished import conversion_of
from dataset_conversion.raw.folds import grouped_splits
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import read_table
from dataset_conversion.system.names import check_name, match_key, refuse_lookalikes, tidy_name
from dataset_conversion.system.options import Range, check_ranges
from dataset_conversion.system.parallel import in_parallel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """An image file, its mask file if there is one, and the case they become."""

    case_id: str
    image: Path
    mask: Path | None
    is_test: bool = False
    test_set: str | None = None


@dataclass(frozen=True)
class ConvertFolder:
    """Convert a folder of images and a folder of masks, matched by name, into an nnU-Net raw data set."""

    images: Path
    """Folder of the training images. They are PNG, JPEG, TIFF, BMP, WebP or GIF files, grey or RGB."""
    masks: Path
    """Folder of their masks. A mask has the name of its image, or that name and a suffix common to all masks
    (_mask). Its values are 0 and 1, 0 and 255, or the values of --labels."""
    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    labels: tuple[str, ...] = ("background=0", "lesion=1")
    """Names of the mask values, as in background=0 polyp=1. With more than two names, the pixels of a mask
    hold these values."""
    max_side: Annotated[int | None, SIDE] = None
    """Images whose longer side has more pixels than this are shrunk to it, together with their masks."""
    threshold: Annotated[int | None, Range(0, 254)] = None
    """Pixels of a mask that are brighter than this (0 to 254) are foreground. JPEG masks need it, and it is
    for two labels only."""
    test_images: Path | None = None
    """Folder of the test images."""
    test_masks: Path | None = None
    """Folder of the masks of the test images."""
    groups: Path | None = None
    """CSV file with the columns case and group (a patient or a video sequence). With it the data set gets 5
    folds, and no group is on both sides of a fold. A case is an image's name without its ending, or its case
    id: test_1 where a training image and a test image have the same name."""

    def check(self) -> None:
        """UserError: an option that is out of range, or does not fit another one."""
        check_ranges(self)
        count = len(parse_labels(self.labels))
        if self.threshold is not None and count != 2:
            raise UserError(
                f"found --threshold {self.threshold} with {count} labels, expected two labels; leave out one "
                "of the options"
            )
        if self.test_masks is not None and self.test_images is None:
            raise UserError("found --test-masks without --test-images, expected both; give the images too")


def convert_folder(options: ConvertFolder) -> None:
    """Convert. UserError: whatever is wrong with options or input; nothing is written then."""
    options.check()
    labels = parse_labels(options.labels)
    pairs = find_pairs(options)
    groups = groups_of(pairs, options.groups) if options.groups is not None else {}
    trained = {pair.case_id for pair in pairs if not pair.is_test}
    splits = grouped_splits({case_id: groups[case_id] for case_id in trained}) if groups else None
    given = [options.groups] if options.groups is not None else []
    files = [path for pair in pairs for path in (pair.image, pair.mask) if path is not None]
    conversion = conversion_of(options, files + given)
    if conversion.is_done():
        return
    grey = all(is_grey(pair.image) for pair in pairs)
    read_binary = functools.partial(read_binary_mask, threshold=options.threshold)
    readers = read_grey if grey else read_rgb, read_binary if len(labels) == 2 else read_index_mask
    channels = ("grey",) if grey else RGB
    about = {"sign": conversion.sign, "max_side": options.max_side}
    with RawDatasetWriter(options.out, channels, labels, **about) as writer:
        if splits is not None:
            writer.set_groups(groups)
            writer.set_splits(splits)
        convert_pairs(writer, pairs, *readers, options.max_side)


def find_pairs(options: ConvertFolder) -> list[Pair]:
    """All images with their masks.

    Where test images share names with training images, their case ids start with test_.
    UserError: as `match_files`.
    """
    files = match_files(options.images, options.masks)
    pairs = [Pair(case_id(name), *paths) for name, paths in files.items()]
    if options.test_images is None:
        return pairs
    tests = match_files(options.test_images, options.test_masks)
    taken = {pair.case_id for pair in pairs}
    prefix = "test_" if any(case_id(name) in taken for name in tests) else ""
    if prefix:
        logger.warning("test images share names with training images: their case ids start with test_")
    return pairs + [Pair(prefix + case_id(name), *paths, is_test=True) for name, paths in tests.items()]


def groups_of(pairs: list[Pair], path: Path) -> dict[str, str]:
    """Case id -> group, from a CSV file.

    UserError: a training case without a group, a group in training and test.
    """
    rows = read_groups(path)
    group_of, used = {match_key(case): group for case, group in rows.items()}, set()
    training, test = {}, {}
    for pair in pairs:
        stem = tidy_name(pair.image.stem)
        is_renamed = pair.case_id != case_id(stem)  # the name means the training image then
        keys = [match_key(name) for name in (pair.case_id, *[stem] * (not is_renamed))]
        group = next((group_of[key] for key in keys if key in group_of), None)
        used.update(keys)
        if group is not None:
            (test if pair.is_test else training)[pair.case_id] = group
        elif not pair.is_test:
            raise UserError(f"{path}: found no group for {stem}, expected one; add a line")
    if unused := [case for case in rows if match_key(case) not in used]:
        logger.warning("%s: %d row(s) name no image, left out: %s", path, len(unused), shortened(unused))
    if shared := sorted(set(training.values()) & set(test.values())):
        raise UserError(
            f"{path}: found group {shared[0]} in training and test images, expected it on one side; move "
            "its images"
        )
    return training | test


def parse_labels(texts: tuple[str, ...]) -> dict[str, int]:
    """`("background=0", "polyp=1")` -> {"background": 0, "polyp": 1}. UserError: any other form."""
    labels = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=(\d+)", text)
        name = tidy_name(match[1]) if match else ""
        if not name or name in labels:
            raise UserError(
                f'found label "{text}", expected name=value with each name once; write background=0 polyp=1'
            )
        labels[name] = int(match[2])
    return labels


def case_id(name: str) -> str:
    """File stem as a case id: what nnU-Net or a shell may trip over becomes an underscore."""
    return re.sub(r"[^\w+-]", "_", tidy_name(name))


def list_images(folder: Path) -> dict[str, Path]:
    """File stem -> path of the images in a folder, as `images_in`.

    UserError: no such folder, no image, one stem twice.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not found, expected a folder of images; check the path")
    files: dict[str, Path] = {}
    for path in images_in(folder):
        stem = tidy_name(path.stem)  # masks and lists may have another Unicode form
        if stem in files:
            raise UserError(
                f"{folder}: found {files[stem].name} and {path.name}, expected one; remove the other"
            )
        files[stem] = path
    if not files:
        raise UserError(
            f"{folder}: found no image, expected files ending in {' '.join(IMAGE_ENDINGS)}; check the path"
        )
    return files


def match_files(images: Path, masks: Path | None) -> dict[str, tuple[Path, Path | None]]:
    """Image stem -> (image file, mask file) by stem; masks may share a suffix, or the prefix p (ETIS).

    UserError: an image without mask or with two; images and masks in one folder. Masks without image are
    named in a warning.
    """
    image_files = list_images(images)
    if masks is None:
        return {stem: (path, None) for stem, path in image_files.items()}
    if images.resolve() == masks.resolve():
        raise UserError(f"{images}: found images and masks in one folder, expected two; move the masks out")
    mask_files = list_images(masks)
    prefix, suffix = _mask_affixes(image_files, mask_files)
    wanted = {stem: prefix + stem + suffix for stem in image_files}
    missing = [stem for stem, name in wanted.items() if name not in mask_files]
    if missing:
        raise UserError(
            f"{masks}: found no mask for {len(missing)} of {len(wanted)} images ({shortened(missing)}), "
            "expected one each, of the same name or with a common suffix; add the masks or remove the images"
        )
    unused = sorted(set(mask_files) - set(wanted.values()))
    if second := [name for name in unused if suffix and name.startswith(tuple(wanted.values()))]:
        raise UserError(
            f"{masks}: found {len(second)} further masks of images that have one ({shortened(second)}), "
            "expected one each; merge them into it"
        )
    if unused:
        logger.warning("%s: %d mask(s) without image left out: %s", masks, len(unused), shortened(unused))
    return {stem: (path, mask_files[wanted[stem]]) for stem, path in image_files.items()}


def convert_pairs(
    writer: RawDatasetWriter,
    pairs: list[Pair],
    read_image: Callable[[Path, Notes], np.ndarray],
    read_mask: Callable[[Path, Notes], np.ndarray],
    max_side: int | None,
) -> None:
    """Read, shrink and write every pair in parallel, then log what was converted on the way."""
    notes = Notes()

    def convert(pair: Pair) -> None:
        image = read_image(pair.image, notes)
        mask = None if pair.mask is None else read_mask(pair.mask, notes)
        if mask is not None and mask.shape != image.shape[:2]:
            turned = mask.shape == image.shape[1::-1]
            raise UserError(
                f"{pair.mask}: found {mask.shape[1]} x {mask.shape[0]} px, expected {image.shape[1]} x "
                f"{image.shape[0]} as its image; export both at the same size"
                + (" and turned alike (EXIF tag)" if turned else "")
            )
        if mask is not None and not mask.any():
            notes.add("masks without foreground", pair.mask)
        if max_side is not None:
            image, mask = resize_to(max_side, image, mask)
        if pair.is_test:
            writer.add_test_case(pair.case_id, image, mask, pair.test_set)
        else:
            writer.add_training_case(pair.case_id, image, mask)

    in_parallel(convert, pairs, "converting")
    notes.report()


def read_groups(path: Path) -> dict[str, str]:
    """Case -> group from a CSV with these columns.

    UserError: as `read_table`; a case twice; cases or groups that only letter case or spaces tell apart.
    """
    groups: dict[str, str] = {}
    for row in read_table(path, ("case", "group")):
        case = check_name(row["case"], "case", path)
        if case in groups:
            raise UserError(f"{path}: found {case} twice, expected each case once; correct the file")
        groups[case] = check_name(row["group"], "group", path)
    refuse_lookalikes(groups, "cases", path)
    refuse_lookalikes(groups.values(), "groups", path)
    return groups


def _mask_affixes(images: dict[str, Path], masks: dict[str, Path]) -> tuple[str, str]:
    """The (prefix, suffix) of mask names that fits most images; plain names win ties."""
    suffixes = {mask[len(stem) :] for stem in list(images)[:20] for mask in masks if mask.startswith(stem)}
    candidates = [
        ("", suffix) for suffix in sorted(suffixes | {""}, key=lambda suffix: (len(suffix), suffix))
    ]
    candidates.append(("p", ""))
    return max(candidates, key=lambda affix: sum(affix[0] + stem + affix[1] in masks for stem in images))
