"""The folds of splits_final.json: nnU-Net's own, by group, and where they lie."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dataset_conversion.system.errors import UserError

DEFAULT_FOLDS = 5  # of the splits that nnU-Net makes where there are none

Split = dict[str, list[str]]  # {"train": [case ids], "val": [case ids]}, one fold of splits_final.json


def default_splits(case_ids: Sequence[str]) -> list[Split]:
    """The five folds that nnU-Net makes of its own."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    # The call in nnUNetTrainer.do_split.
    return generate_crossval_split(sorted(case_ids), seed=12345, n_splits=DEFAULT_FOLDS)


def splits_files(folder: Path) -> list[Path]:
    """Where splits_final.json may lie: nnU-Net's place ($nnUNet_preprocessed) first, then the raw folder."""
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    places = [preprocessed / folder.resolve().name] if preprocessed else []
    return [place / "splits_final.json" for place in (*places, folder)]


def nnunet_folder(variable: str) -> Path | None:
    """Value of nnUNet_raw, nnUNet_preprocessed or nnUNet_results; None when it is not set."""
    value = os.environ.get(variable)
    return Path(value) if value else None


def grouped_splits(groups: Mapping[str, str], folds: int = 5, seed: int = 12345) -> list[Split]:
    """Folds of near equal size with no group (sequence, patient) on both sides; `groups`: case id -> group.

    Largest group first into the smallest fold, ties in an order drawn from `seed`. UserError: too few groups.
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
