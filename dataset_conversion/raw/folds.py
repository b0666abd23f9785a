"""Which cases a fold trains on and which it holds out, and that no patient is on both sides."""

from __future__ import annotations

from typing import Literal

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.errors import UserError

Fold = int | Literal["all"]


def fold_cases(dataset: RawDataset, fold: Fold) -> tuple[list[str], list[str]]:
    """Training and validation case ids of one fold as nnU-Net splits them; `all` has no validation cases.

    UserError: no such fold, or whatever is wrong with splits_final.json.
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
