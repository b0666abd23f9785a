"""Which masks deserve more images: the Dice of each training case, its file, and what is drawn by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted, read_json, write_json
from dataset_conversion.system.names import check_case_id

FORMAT = 1
FLOOR = 0.1  # weight of a case that was segmented without an error, so that none is forgotten
REMEDY = "run law-synth mine again"


@dataclass(frozen=True)
class HardCases:
    """Content of a file of `law-synth mine`, with the order of its fields there."""

    dataset: str
    fold: Fold
    segmenter: str
    segmenter_sha256: str
    dice: dict[str, int | float]
    """Case id -> Dice of the segmenter's lesion and the mask."""

    @property
    def json(self) -> dict[str, Any]:
        """As the file has it."""
        return {"format": FORMAT, **as_json(self)}

    @property
    def hash(self) -> str:
        """sha256 of the content, however it is laid out in the file."""
        return hashlib.sha256(json.dumps(self.json, sort_keys=True).encode()).hexdigest()

    def draw(self, cases: Sequence[str], count: int, seed: int) -> list[int]:
        """Indices (count,) into `cases`, ascending: the worse a case was segmented, the more often it comes.

        Systematic resampling (Kitagawa 1996): one draw places a comb of `count` equal steps on the cases'
        weights (1 - Dice) + FLOOR, so that each case comes as often as its share of `count` says, rounded up
        or down.
        """
        weights = np.array([1 - self.dice[case] + FLOOR for case in cases])
        ends = weights.cumsum() / weights.sum()
        comb = (np.arange(count) + np.random.default_rng(seed).random()) / count
        return np.minimum(ends.searchsorted(comb, side="right"), len(cases) - 1).tolist()  # the sum may round


def read_hard_cases(path: Path, dataset: str, fold: Fold, train_cases: Sequence[str]) -> HardCases:
    """Read a file of `law-synth mine`.

    UserError: missing or malformed, of another data set or fold, or not of exactly the training cases.
    """
    hard = _read(path)
    if (hard.dataset, hard.fold) != (dataset, fold):
        raise UserError(
            f"{path}: found fold {hard.fold} of {hard.dataset}, expected fold {fold} of {dataset}; run "
            f"law-synth mine --dataset {dataset} --fold {fold}"
        )
    if outside := sorted(set(hard.dice) - set(train_cases)):
        raise UserError(
            f"{path}: found {outside[0]} ({len(outside)} such), expected training cases of fold {fold} only: "
            f"it would leak; {REMEDY}"
        )
    if missing := sorted(set(train_cases) - set(hard.dice)):
        raise UserError(
            f"{path}: found no Dice of {missing[0]} ({len(missing)} such), expected one of each training "
            f"case of fold {fold}; {REMEDY}"
        )
    return hard


def is_hard_cases(path: Path) -> bool:
    """Whether `path` is a file of `law-synth mine`."""
    try:
        _read(path)
    except UserError:
        return False
    return True


def write_hard_cases(path: Path, hard: HardCases) -> None:
    """Write a file of `law-synth mine`."""
    write_json(path, hard.json)


def checked_hard_cases(hard: HardCases, path: Path) -> HardCases:
    """With ids that are safe to make files of. UserError: odd ids; a Dice outside of 0 to 1."""
    for case, dice in hard.dice.items():
        if not 0 <= dice <= 1:
            raise UserError(f"{path}: found a Dice of {dice} at dice.{case}, expected 0 to 1; {REMEDY}")
    return replace(hard, dice={check_case_id(case, path): dice for case, dice in hard.dice.items()})


def _read(path: Path) -> HardCases:
    content = read_json(path, dict[str, Any], REMEDY)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: found format {content.get('format')}, expected {FORMAT}; {REMEDY}")
    return checked_hard_cases(converted(content, HardCases, path, REMEDY), path)
