"""Any folder of images and folder of masks into nnU-Net raw format."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.image_files import IMAGE_ENDINGS, images_in, shortened
from dataset_conversion.images import (
    check_max_side,
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
    """Folder of training images (PNG, JPEG, TIFF, BMP, WebP, GIF; grey or RGB)."""
    masks: Path
    """Folder of their masks: same names or with a common suffix (_mask); 0/1, 0/255 or label values."""
    out: Path
    """Folder to write, named DatasetXXX_NAME."""
    labels: tuple[str, ...] = ("background=0", "lesion=1")
    """Names of the mask values: background=0 polyp=1; with more than two, masks hold label values."""
    max_side: int | None = None
    """Shrink images whose longer side exceeds this many pixels."""
    threshold: int | None = None
    """Foreground is brighter than this (0-254), whatever the mask file; needed for JPEG masks."""
    test_images: Path | None = None
    """Folder of test images."""
    test_masks: Path | None = None
    """Folder of their masks."""
    groups: Path | None = None
    """CSV with columns case,group (patient, sequence): makes 5 folds with no group on both sides. case is an
    image's name without ending, or its case id: test_1 where training and test images share names."""

    def run(self) -> None:
        """Convert. UserError: whatever is wrong with the input; nothing is written then."""
        labels = parse_labels(self.labels)
        binary = len(labels) == 2
        if self.threshold is not None and not (binary and 0 <= self.threshold < 255):
            raise UserError(
                f"found --threshold {self.threshold} with {len(labels)} labels, expected 0-254 and two; "
                "correct one of the options"
            )
        pairs = self._pairs()
        groups = self._case_groups(pairs) if self.groups is not None else {}
        trained = {pair.case_id for pair in pairs if not pair.is_test}
        splits = grouped_splits({case_id: groups[case_id] for case_id in trained}) if groups else None
        given = [self.groups] if self.groups is not None else []
        files = [path for pair in pairs for path in (pair.image, pair.mask) if path is not None]
        conversion = conversion_of(self, files + given)
        if conversion.is_done():
            return
        grey = all(is_grey(pair.image) for pair in pairs)
        read_image = read_grey if grey else read_rgb
        read_mask = (
            functools.partial(read_binary_mask, threshold=self.threshold) if binary else read_index_mask
        )
        channels = ("grey",) if grey else RGB
        with RawDatasetWriter(self.out, channels, labels, sign=conversion.sign) as writer:
            if splits is not None:
                writer.set_groups(groups)
                writer.set_splits(splits)
            convert_pairs(writer, pairs, read_image, read_mask, self.max_side)

    def _pairs(self) -> list[Pair]:
        pairs = [Pair(case_id(name), *files) for name, files in match_files(self.images, self.masks).items()]
        if self.test_images is None:
            if self.test_masks is not None:
                raise UserError(
                    "found --test-masks without --test-images, expected both; give the images too"
                )
            return pairs
        tests = match_files(self.test_images, self.test_masks)
        taken = {pair.case_id for pair in pairs}
        prefix = "test_" if any(case_id(name) in taken for name in tests) else ""
        if prefix:
            logger.warning("test images share names with training images: their case ids start with test_")
        return pairs + [Pair(prefix + case_id(name), *files, is_test=True) for name, files in tests.items()]

    def _case_groups(self, pairs: list[Pair]) -> dict[str, str]:
        """Case id -> group. UserError: a training case without one, a group in training and test."""
        rows = read_groups(self.groups)
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
                raise UserError(f"{self.groups}: found no group for {stem}, expected one; add a line")
        if unused := [case for case in rows if match_key(case) not in used]:
            left_out = (self.groups, len(unused), shortened(unused))
            logger.warning("%s: %d row(s) of no image left out: %s", *left_out)
        if shared := sorted(set(training.values()) & set(test.values())):
            raise UserError(
                f"{self.groups}: found group {shared[0]} in training and test images, expected one side"
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
                f'found label "{text}", expected name=value, each name once: background=0 polyp=1'
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
        raise UserError(f"{folder}: found no image, expected files ending in {' '.join(IMAGE_ENDINGS)}")
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
    check_max_side(max_side)
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
