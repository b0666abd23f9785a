"""A share of an nnU-Net raw data set as a data set of its own: low-data experiments, small machines."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from dataset_conversion.images import SIDE, read_grey, read_index_mask, read_rgb, resize_to
from dataset_conversion.notes import Notes
from dataset_conversion.raw.case_lists import GROUPS, TEST_SETS, write_groups, write_test_sets
from dataset_conversion.raw.cases import COLOUR_ENDINGS, Case
from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.description import DESCRIPTION, check_label_values
from dataset_conversion.raw.finished import conversion_of
from dataset_conversion.raw.folds import (
    DEFAULT_FOLDS,
    Split,
    default_splits,
    drawn_cases,
    refuse_other_splits,
    restricted_splits,
    splits_files,
    splits_in,
    write_splits,
)
from dataset_conversion.raw.writer import check_out
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import link_or_copy
from dataset_conversion.system.folders import new_folder
from dataset_conversion.system.json_files import write_json
from dataset_conversion.system.options import SEED, Range, check_ranges
from dataset_conversion.system.parallel import in_parallel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertSubset:
    """Make a raw data set of a share of another's training cases, of all its test cases, and of its folds.

    Files are hard-linked where the file system can do so. The share is drawn within each part of the folds,
    so that every fold keeps its proportion. With one seed, a smaller share lies within a larger one.
    """

    dataset: str
    """Raw data set to take the cases from: its id, its name DatasetXXX_NAME, or its folder."""
    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    fraction: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the training cases to keep, above 0 and at most 1."""
    seed: Annotated[int, SEED] = 0
    """Another seed keeps other cases."""
    max_side: Annotated[int | None, SIDE] = None
    """Images whose longer side has more pixels than this are shrunk to it, together with their masks. This is
    for 2D PNG, BMP and TIFF files only."""
    splits: Path | None = None
    """File of the folds. The default is the data set's splits_final.json, in nnUNet_preprocessed before its
    raw folder; where there is none, nnU-Net's default folds are used."""

    def check(self) -> None:
        """UserError: an option that is out of range."""
        check_ranges(self)


def convert_subset(options: ConvertSubset) -> None:
    """Write the subset. UserError: whatever is wrong with options, source or `out`."""
    options.check()
    out = Path(options.out).resolve()
    source = find_dataset(options.dataset)
    if options.max_side is not None:
        check_shrinkable(source)
    conversion = conversion_of(options, source_files(source, options.splits))
    if conversion.is_done():
        return
    check_out(out)
    splits = source_splits(source, options.splits)
    case_ids = [case.id for case in source.training_cases]
    kept = drawn_cases(case_ids, splits, options.fraction, options.seed)
    splits = restricted_splits(splits, kept)
    refuse_other_splits(out, splits)
    with new_folder(out) as partial:
        write_cases(source, kept, partial, options.max_side)
        write_descriptions(source, kept, partial, options.max_side)
        if splits:
            write_splits(out, splits, partial)
        conversion.sign(partial)
    logger.info(
        "wrote %s: %d of %d training cases, %d test cases",
        *(out, len(kept), len(source.training_cases), len(source.test_cases)),
    )


def write_cases(source: RawDataset, kept: set[str], folder: Path, max_side: int | None) -> None:
    """Link, copy or shrink the files of the training cases that are `kept` and of all test cases."""
    notes = Notes()

    def copy(part_and_case: tuple[str, Case]) -> None:
        part, case = part_and_case
        if max_side is None:
            link_case(source, case, part, folder)
        else:
            shrink_case(source, case, part, folder, max_side, notes)

    for name in ("imagesTr", "labelsTr", *["imagesTs", "labelsTs"] * bool(source.test_cases)):
        (folder / name).mkdir()
    jobs = [("Tr", case) for case in source.training_cases if case.id in kept]
    in_parallel(copy, jobs + [("Ts", case) for case in source.test_cases], "copying")
    notes.report()


def write_descriptions(source: RawDataset, kept: set[str], folder: Path, max_side: int | None) -> None:
    """Write dataset.json, and groups.json and test_sets.json where the source has them."""
    # The table of files goes: here, names say which case a file belongs to.
    content = {key: value for key, value in source.json.items() if key != "dataset"}
    content |= {"numTraining": len(kept), "subset_of": source.origin}
    if limits := [side for side in (max_side, source.description.max_side) if side is not None]:
        content["max_side"] = min(limits)
    write_json(folder / DESCRIPTION, content)
    if (source.folder / GROUPS).is_file():
        kept_or_test = kept | {case.id for case in source.test_cases}
        groups = {case_id: group for case_id, group in source.groups.items() if case_id in kept_or_test}
        write_groups(folder, groups)
    if source.test_sets:
        write_test_sets(folder, source.test_sets)


def check_shrinkable(source: RawDataset) -> None:
    """UserError unless the files hold 2D images of one grey channel or of RGB."""
    one_file = any(len(case.images) == 1 for case in source.training_cases)
    channels = len(source.channel_names) if one_file else 1
    if source.holds_volumes or channels not in (1, 3):
        kind = "volumes" if source.holds_volumes else "images"
        raise UserError(
            f"{source.folder}: found {source.file_ending} {kind} of {channels} channel(s), expected "
            f"2D {', '.join(COLOUR_ENDINGS)} of 1 or 3 for --max-side; leave it out"
        )


def source_files(source: RawDataset, splits: Path | None = None) -> list[Path]:
    """All files of a data set, and those of its folds; `splits`: the one given instead."""
    files = [path for name in (DESCRIPTION, GROUPS, TEST_SETS) if (path := source.folder / name).is_file()]
    files += [path for path in [splits, *splits_files(source.folder)] if path and path.is_file()]
    for case in (*source.training_cases, *source.test_cases):
        files += [*case.images, *([case.label] if case.label else []), *source.spacing_files(case).values()]
    return files


def source_splits(source: RawDataset, given: Path | None = None) -> list[Split]:
    """The folds that `given` or else splits_final.json holds, else nnU-Net's own; none of under 5 cases.

    UserError: `given` is not there or holds no folds, a fold names a case that is not.
    """
    if given is not None and not given.is_file():
        raise UserError(f"{given}: not found, expected a file like splits_final.json; correct --splits")
    path = next((path for path in [given, *splits_files(source.folder)] if path and path.is_file()), None)
    case_ids = [case.id for case in source.training_cases]
    if path is None:
        return default_splits(case_ids) if len(case_ids) >= DEFAULT_FOLDS else []
    return splits_in(source, path)


def link_case(source: RawDataset, case: Case, part: str, folder: Path) -> None:
    """Hard-link or else copy a case's files into images{part} and labels{part} of `folder`."""
    for channel, path in enumerate(case.images):
        link_or_copy(path, _image_path(source, case, part, folder, channel))
    if case.label is not None:
        link_or_copy(case.label, _label_path(source, case, part, folder))
    for kind, path in source.spacing_files(case).items():
        link_or_copy(path, folder / f"{kind}{part}" / f"{case.id}.json")


def shrink_case(source: RawDataset, case: Case, part: str, folder: Path, max_side: int, notes: Notes) -> None:
    """Write a case with sides of at most `max_side` px. UserError: unreadable, wrong size or values.

    Pixels as stored: nnU-Net does not look at EXIF tags, and masks have none.
    """
    mask = None
    if case.label is not None:
        mask = read_index_mask(case.label, notes, upright=False)
        check_label_values(mask, source.label_values, str(case.label))
    one_colour_file = len(case.images) == 1 and len(source.channel_names) > 1
    for channel, path in enumerate(case.images):
        image = (read_rgb if one_colour_file else read_grey)(path, notes, upright=False)
        if mask is not None and mask.shape != image.shape[:2]:
            raise UserError(
                f"{case.label}: found size {mask.shape}, expected the image's {image.shape[:2]} (Y, X); "
                "export image and label at the same size"
            )
        small, small_mask = resize_to(max_side, image, mask)
        Image.fromarray(small).save(_image_path(source, case, part, folder, channel))
    if mask is not None:
        Image.fromarray(small_mask.astype(np.uint8)).save(_label_path(source, case, part, folder))


def _image_path(source: RawDataset, case: Case, part: str, folder: Path, channel: int) -> Path:
    return folder / f"images{part}" / f"{case.id}_{channel:04d}{source.file_ending}"


def _label_path(source: RawDataset, case: Case, part: str, folder: Path) -> Path:
    return folder / f"labels{part}" / f"{case.id}{source.file_ending}"
