"""On which folds, cases and device an experiment is measured, where its options leave that open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold, read_splits
from dataset_conversion.system.errors import UserError
from nnunet_order.stages.experiment_record import recorded_device

Measured = Literal["test", "validation"]


def chosen_folds(source: RawDataset, folds: Sequence[Fold]) -> tuple[Fold, ...]:
    """`folds`; if there are none, all for a data set with labelled test cases, else every numbered fold."""
    if folds:
        return tuple(folds)
    return ("all",) if _has_labelled_tests(source) else tuple(range(len(read_splits(source)))) or ("all",)


def measured_cases(source: RawDataset, folds: Sequence[Fold], on: Measured | Literal["auto"]) -> Measured:
    """The cases to measure on. UserError: they have no labels, or `folds` leave none for validation."""
    if on == "auto":
        on = "test" if "all" in folds else "validation"
    if on == "test" and not _has_labelled_tests(source):
        raise UserError(
            f"{source.folder}: found no labelled test cases, expected imagesTs and labelsTs to measure on; "
            "give numbered folds, which are measured on their validation cases"
        )
    if on == "validation" and "all" in folds:
        raise UserError(
            "found fold all, expected numbered folds to measure on validation cases; give folds such as 0 1 2"
        )
    return on


def chosen_device(folder: Path, device: str) -> str:
    """`device`; for "auto" the one that the experiment in `folder` began with, else CUDA or the CPU.

    A cluster's login node has no GPU, and the commands there must be those of the other nodes.
    """
    if device != "auto":
        return device
    if recorded := recorded_device(folder):
        return recorded
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _has_labelled_tests(source: RawDataset) -> bool:
    return bool(source.test_cases) and all(case.label is not None for case in source.test_cases)
