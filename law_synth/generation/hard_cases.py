"""Which masks deserve more images: the Dice of each training case, its file, and what is drawn by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.folds import Fold
from dataset_conversion.names import check_case_id
from dataset_conversion.user_error import UserError

FORMAT = 1
KEYS = ("format", "dataset", "fold", "segmenter", "segmenter_sha256", "dice")
FLOOR = 0.1  # weight of a case that was segmented without an error, so that none is forgotten


@dataclass(frozen=True)
class HardCases:
    """Content of a file of `law-synth mine`; `read_hard_cases` makes it."""

    content: dict

    @property
    def dice(self) -> dict[str, float]:
        """Case id -> Dice of the segmenter's lesion and the mask."""
        return self.content["dice"]

    @property
    def hash(self) -> str:
        """sha256 of the content, however it is laid out in the file."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

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
    content = _load(path)
    found = (content["dataset"], content["fold"])
    if found != (dataset, fold):
        raise UserError(
            f"{path}: found fold {found[1]} of {found[0]}, expected fold {fold} of {dataset}; run law-synth "
            f"mine --dataset {dataset} --fold {fold}"
        )
    if outside := sorted(set(content["dice"]) - set(train_cases)):
        raise UserError(
            f"{path}: found {outside[0]} ({len(outside)} such), expected training cases of fold {fold} only: "
            "it would leak; run law-synth mine again"
        )
    if missing := sorted(set(train_cases) - set(content["dice"])):
        raise UserError(
            f"{path}: found no Dice of {missing[0]} ({len(missing)} such), expected one of each training "
            f"case of fold {fold}; run law-synth mine again"
        )
    return HardCases(content)


def is_hard_cases(path: Path) -> bool:
    """Whether `path` is a file of `law-synth mine`."""
    try:
        _load(path)
    except UserError:
        return False
    return True


def _load(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, not {FORMAT}")
        if missing := [key for key in KEYS if key not in content]:
            raise ValueError(f"no {missing[0]}")
        if not all(0 <= dice <= 1 for dice in content["dice"].values()):
            raise ValueError("a Dice outside 0 to 1")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else f"malformed ({error})"
        raise UserError(f"{path}: {reason}, expected a file of law-synth mine; run it again") from error
    return content | {"dice": {check_case_id(case, path): dice for case, dice in content["dice"].items()}}
