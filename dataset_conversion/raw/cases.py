"""Which files of a raw folder are which case's."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.image_files import check_regular, opened
from dataset_conversion.raw.description import DESCRIPTION, ListedFiles
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import visible_files
from dataset_conversion.system.names import check_case_id, refuse_lookalikes, tidy_name

# Files of these kinds hold all colour channels at once: case_0000.png with three channel_names.
COLOUR_ENDINGS = (".png", ".bmp", ".tif")


@dataclass(frozen=True)
class Case:
    """One case of a raw folder: its image files in channel order and its label file, if there is one."""

    id: str
    images: tuple[Path, ...]
    label: Path | None


def named_cases(folder: Path, part: str, ending: str, channels: int) -> list[Case]:
    """Cases of images{part} / labels{part}, sorted by id; part is Tr or Ts.

    UserError: no such folder; names that are none of a case, or are too much alike; missing channels.
    """
    images, labels = folder / f"images{part}", files_by_id(folder / f"labels{part}", ending)
    if not images.is_dir():
        raise UserError(
            f"{images}: not found, expected the images of the data set; see nnU-Net's dataset format"
        )
    cases = cases_in(images, ending, channels)
    return [Case(case.id, case.images, labels.get(case.id)) for case in cases]


def cases_in(images: Path, ending: str, channels: int) -> list[Case]:
    """Unlabelled cases of a folder of files such as case_0000.png, sorted by id.

    UserError: names that are none of a case, or are too much alike; missing channels.
    """
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending), re.DOTALL)
    files: dict[str, list[Path]] = defaultdict(list)
    as_named: dict[str, None] = {}  # ids as the files' names have them, in order
    names = visible_files(images)
    for name in names:
        if match := pattern.fullmatch(name):
            files[check_case_id(match[1], images)].append(images / name)
            as_named[match[1]] = None
    if names and not files:
        raise UserError(
            f"{images}: found files such as {names[0]}, expected names like case_0000{ending}; "
            "correct file_ending in dataset.json or rename the files"
        )
    refuse_lookalikes(as_named, "case ids", images)
    for case_id, paths in files.items():
        _check_channels(case_id, paths, ending, channels)
    return [Case(case_id, tuple(paths), None) for case_id, paths in sorted(files.items())]


def listed_cases(folder: Path, table: Mapping[str, ListedFiles]) -> list[Case]:
    """Cases of the `dataset` table of a dataset.json, sorted by id. UserError: a file is not there."""
    path = folder / DESCRIPTION
    ids = {name: check_case_id(name, path) for name in table}
    refuse_lookalikes(table, "case ids", path)
    return [_listed_case(folder, ids[name], table[name]) for name in sorted(table, key=ids.get)]


def _listed_case(folder: Path, case_id: str, files: ListedFiles) -> Case:
    images = tuple(folder / os.path.expandvars(image) for image in files.images)
    label = folder / os.path.expandvars(files.label)
    missing = [path for path in (*images, label) if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: not found, expected because dataset.json lists it; correct its path")
    return Case(case_id, images, label)


def _check_channels(case_id: str, paths: list[Path], ending: str, channels: int) -> None:
    found = [path.name[: -len(ending)][-4:] for path in paths]
    expected = [f"{channel:04d}" for channel in range(channels)]
    one_colour_file = found == ["0000"] and channels in (3, 4) and ending in COLOUR_ENDINGS
    if found != expected and not one_colour_file:
        raise UserError(
            f"{paths[0].parent}: case {case_id} has channel files {found}, expected {expected} "
            "as in channel_names of dataset.json; add the missing files or correct dataset.json"
        )


def files_by_id(folder: Path, ending: str) -> dict[str, Path]:
    """Case id -> its file in a folder of labels or predictions, which need not be there.

    The ids are tidy, as `RawDataset` has them, whatever spaces or Unicode form the files' names have.
    """
    names = visible_files(folder) if folder.is_dir() else []
    files = {tidy_name(name.removesuffix(ending)): folder / name for name in names if name.endswith(ending)}
    return {case_id: path for case_id, path in files.items() if path.is_file()}


def check_file(path: Path) -> None:
    """UserError unless it is a file that ends and, of PNG and BMP, none of a format that is not meant.

    The library that reads them for nnU-Net goes by what is in a file, and for some formats starts programs.
    """
    check_regular(path)
    if path.suffix in (".png", ".bmp"):
        with opened(path):
            pass
