"""The folds of a data set: splits_final.json, how folds are made, and that no patient is on both sides."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from dataset_conversion.raw.dataset import RawDataset, nnunet_folder
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json, write_json
from dataset_conversion.system.names import check_case_ids

logger = logging.getLogger(__name__)

Fold = int | Literal["all"]
DEFAULT_FOLDS = 5  # of the splits that nnU-Net makes where there are none

SIDES = ("train", "val")


class Split(TypedDict):
    """One fold of splits_final.json: the ids of its cases."""

    train: list[str]
    val: list[str]


def read_folds(path: Path) -> list[Split]:
    """Folds of a file like splits_final.json, with tidy ids.

    UserError: a wrong type or a missing side; it holds none; as `check_case_id`.
    """
    splits = read_json(path, list[Split], "correct it")
    if not splits:
        raise UserError(
            f'{path}: found no folds, expected [{{"train": [...], "val": [...]}}, ...]; correct it'
        )
    return [{side: check_case_ids(fold[side], path) for side in SIDES} for fold in splits]


def read_splits(dataset: RawDataset) -> list[Split]:
    """The folds that nnU-Net will use: of its preprocessed folder, else of the raw folder, else its default.

    UserError: a damaged file, as `splits_in`; too few cases.
    """
    for path in splits_files(dataset.folder):
        if path.is_file():
            return splits_in(dataset, path)
    case_ids = [case.id for case in dataset.training_cases]
    if len(case_ids) < DEFAULT_FOLDS:
        raise UserError(
            f"{dataset.folder}: found {len(case_ids)} training cases, expected 5 or more for folds; add some"
        )
    return default_splits(case_ids)


def splits_in(dataset: RawDataset, path: Path) -> list[Split]:
    """Folds that a file like splits_final.json holds. UserError: it holds none, or unknown cases."""
    splits = read_folds(path)
    named = {case_id for fold in splits for side in SIDES for case_id in fold[side]}
    if unknown := sorted(named - {case.id for case in dataset.training_cases}):
        raise UserError(
            f"{path}: found {unknown[0]} ({len(unknown)} such), expected ids of training cases; restore "
            "them or correct the file"
        )
    return splits


def fold_cases(dataset: RawDataset, fold: Fold) -> tuple[list[str], list[str]]:
    """Training and validation case ids of one fold as nnU-Net splits them; `all` has no validation cases.

    UserError: no such fold, or whatever is wrong with splits_final.json.
    """
    if fold == "all":
        return [case.id for case in dataset.training_cases], []
    splits = read_splits(dataset)
    if not 0 <= fold < len(splits):
        raise UserError(
            f"found --fold {fold}, expected 0 to {len(splits) - 1} or all; {dataset.folder.name} has "
            f"{len(splits)} folds"
        )
    return sorted(splits[fold]["train"]), sorted(splits[fold]["val"])


def leak_free_fold(dataset: RawDataset, fold: Fold) -> tuple[list[str], list[str]]:
    """As `fold_cases`. UserError: also no training cases; a group (patient, sequence) on both sides."""
    training, validation = fold_cases(dataset, fold)
    if not training:
        raise UserError(
            f"{dataset.folder}: found no training cases in fold {fold}, expected some; correct "
            "splits_final.json"
        )
    trained = {dataset.groups[case_id] for case_id in training}
    if shared := [case_id for case_id in validation if dataset.groups[case_id] in trained]:
        raise UserError(
            f"{dataset.folder}: found in fold {fold} the validation case {shared[0]} ({len(shared)} such) "
            f"and training cases of its group {dataset.groups[shared[0]]}, expected each group on one side; "
            "make splits_final.json by group"
        )
    return training, validation


def default_splits(case_ids: Sequence[str]) -> list[Split]:
    """nnU-Net's five default folds."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    # The call in nnUNetTrainer.do_split; the ids are numpy's texts, which JSON does not know.
    folds = generate_crossval_split(sorted(case_ids), seed=12345, n_splits=DEFAULT_FOLDS)
    return [{side: [f"{case}" for case in fold[side]] for side in SIDES} for fold in folds]


def splits_files(folder: Path) -> list[Path]:
    """Where splits_final.json may lie: nnU-Net's place ($nnUNet_preprocessed) first, then the raw folder."""
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    places = [preprocessed / folder.resolve().name] if preprocessed else []
    return [place / "splits_final.json" for place in (*places, folder)]


def grouped_splits(groups: Mapping[str, str], folds: int = 5, seed: int = 12345) -> list[Split]:
    """Folds of nearly equal size with no group (sequence, patient) on both sides; `groups`: case id -> group.

    The largest group goes first, into the smallest fold; `seed` decides the order of groups of one size.
    UserError: too few groups.
    """
    members = defaultdict(list)
    for case_id, group in sorted(groups.items()):
        members[group].append(case_id)
    if len(members) < folds:
        raise UserError(
            f"found {len(members)} groups, expected at least {folds} for {folds} folds; name more groups"
        )
    names = sorted(members)
    random.Random(seed).shuffle(names)
    parts: list[list[str]] = [[] for _ in range(folds)]
    for name in sorted(names, key=lambda name: -len(members[name])):
        min(parts, key=len).extend(members[name])
    return [
        {
            "train": sorted(case_id for other in parts if other is not part for case_id in other),
            "val": sorted(part),
        }
        for part in parts
    ]


def drawn_cases(case_ids: Sequence[str], splits: Sequence[Split], fraction: float, seed: int) -> set[str]:
    """Draw a share of the cases among those that train in the same folds and validate in the same folds.

    At least one case of each such part is kept. Without folds at least five are kept, if there are so many.
    """
    sides = [(set(fold["train"]), set(fold["val"])) for fold in splits]
    parts = defaultdict(list)
    for case_id in sorted(case_ids):
        parts[tuple((case_id in train, case_id in val) for train, val in sides)].append(case_id)
    generator = random.Random(seed)
    kept: set[str] = set()
    for part in parts.values():
        generator.shuffle(part)
        kept.update(part[: max(1 if splits else DEFAULT_FOLDS, round(fraction * len(part)))])
    return kept


def restricted_splits(splits: Sequence[Split], kept: set[str]) -> list[Split]:
    """The same folds without the cases that are not `kept`, in their order."""
    return [
        {side: [case_id for case_id in fold[side] if case_id in kept] for side in SIDES} for fold in splits
    ]


def write_splits(folder: Path, splits: list[Split], unfinished: Path | None = None) -> None:
    """Write splits_final.json into a raw folder and, if it is set, $nnUNet_preprocessed/<name>/.

    This happens before the raw folder takes its name. Without these folds nnU-Net would use its default ones,
    which may put one patient on both sides. UserError, before anything is written: one of the two folders
    holds different splits.

    Args:
        folder: the raw folder under its final name.
        unfinished: where its files are now; default: there.
    """
    refuse_other_splits(folder, splits)
    *preprocessed, own = splits_files(folder)
    for path in (*preprocessed, (unfinished or folder) / own.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, splits)
    logger.info("wrote %d folds into %s", len(splits), " and ".join(map(str, (*preprocessed, own))))
    if not preprocessed:
        logger.info(
            "nnUNet_preprocessed is not set: copy it to $nnUNet_preprocessed/%s/ before training", folder.name
        )


def refuse_other_splits(folder: Path, splits: list[Split]) -> None:
    """UserError when a splits_final.json of data set `folder` exists and differs from `splits`."""
    for path in splits_files(folder):
        if path.is_file() and read_json(path, list, "correct it") != splits:
            raise UserError(
                f"{path}: found other splits than the {len(splits)} folds to write, expected the same; "
                "delete that file (and the models trained with it) or choose another --out"
            )
