"""The file of `law-synth mine`: the Dice of each training case, and the masks that are drawn by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted, read_json, write_json
from dataset_conversion.system.names import check_case_id

FORMAT = 1
FLOOR = 0.1  # weight of a case that was segmented without an error, so that none is forgotten
AGAIN = "run law-synth mine again"


@dataclass(frozen=True)
class HardCases:
    """How well a segmenter found the lesions of a fold's training cases."""

    format: int
    dataset: str
    fold: Fold
    segmenter: str
    """Name of the model."""
    segmenter_sha256: str
    dice: dict[str, Annotated[float, Meta(ge=0, le=1)]]
    """Case id -> Dice of the mask that the segmenter found and the case's own."""

    @property
    def hash(self) -> str:
        """sha256 of the content, however it is laid out in the file."""
        return hashlib.sha256(json.dumps(as_json(self), sort_keys=True).encode()).hexdigest()

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


def write_hard_cases(path: Path, hard_cases: HardCases) -> None:
    """Write the file at once or not at all. UserError: the disk is full, or the place cannot be written."""
    write_json(path, as_json(hard_cases))


def read_hard_cases(path: Path, dataset: str, fold: Fold, train_cases: Sequence[str]) -> HardCases:
    """Read a file of `law-synth mine`.

    UserError: it is missing or malformed, is of another data set or fold, or does not hold exactly the
    training cases.
    """
    content = _load(path)
    if (content.dataset, content.fold) != (dataset, fold):
        raise UserError(
            f"{path}: found fold {content.fold} of {content.dataset}, expected fold {fold} of {dataset}; run "
            f"law-synth mine --dataset {dataset} --fold {fold}"
        )
    if outside := sorted(set(content.dice) - set(train_cases)):
        raise UserError(
            f"{path}: found {outside[0]} ({len(outside)} such), expected training cases of fold {fold} only: "
            f"it would leak; {AGAIN}"
        )
    if missing := sorted(set(train_cases) - set(content.dice)):
        raise UserError(
            f"{path}: found no Dice of {missing[0]} ({len(missing)} such), expected one of each training "
            f"case of fold {fold}; {AGAIN}"
        )
    return content


def is_hard_cases(path: Path) -> bool:
    """Whether `path` is a file of `law-synth mine`."""
    try:
        _load(path)
    except UserError:
        return False
    return True


def _load(path: Path) -> HardCases:
    content = read_json(path, dict[str, Any], AGAIN)
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: found format {content.get('format')}, expected {FORMAT}; {AGAIN}")
    return with_checked_ids(converted(content, HardCases, path, AGAIN), path)


def with_checked_ids(hard: HardCases, path: Path) -> HardCases:
    """As it was read from `path`, with ids that are safe to make files of. UserError: odd ids."""
    return replace(hard, dice={check_case_id(case, path): dice for case, dice in hard.dice.items()})
