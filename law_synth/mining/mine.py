"""`law-synth mine`: which training cases a segmenter finds hard, for more synthetic cases of their masks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError, check_writable

if TYPE_CHECKING:
    from law_synth.judging.segmenter import Segmenter
    from law_synth.view.slices import SliceView

logger = logging.getLogger(__name__)

SLICES_PER_CASE = 16  # of volumes, evenly spaced among those with foreground


@dataclass(frozen=True)
class Mine:
    """Measure how well a trained segmenter finds the lesions of one fold's training cases.

    The Dice of each case (of volumes: of up to 16 slices; of several classes: their mean) goes into --out,
    for law-synth generate --hard-cases. Validation and test cases are never looked at, and a segmenter that
    is known to have learned from validation cases is refused.
    """

    dataset: str
    """Id, name or folder of the nnU-Net raw data set that the synthesis was trained on."""
    segmenter: Path
    """nnU-Net model folder (.../nnUNetTrainerORDER__nnUNetPlans__2d); its fold --fold, if it is there.
    Networks of other packages than nnU-Net's want your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    fold: Fold = 0
    """The synthesis' fold; all for all training cases."""
    out: Path = Path("hard_cases.json")
    """JSON file to write."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check everything, say what would be done and stop."""

    def run(self) -> None:
        """Predict and write. UserError: data set, fold, model or --out not usable; the model would leak."""
        from dataset_conversion.raw.dataset import find_dataset
        from dataset_conversion.raw.folds import leak_free_fold
        from law_synth.devices import pick_device
        from law_synth.judging.segmenter import judge_of_fold
        from law_synth.leaks import refuse_informed_judge
        from law_synth.records.hard_cases import HardCases, is_hard_cases, write_hard_cases
        from law_synth.view.slices import view_of

        if self.out.exists() and not is_hard_cases(self.out):
            raise UserError(f"{self.out}: found something else, expected no file; choose another --out")
        check_writable(self.out)
        device, dataset = pick_device(self.device), find_dataset(self.dataset)
        cases, _ = leak_free_fold(dataset, self.fold)
        view = view_of(dataset, cases, window=(0, 1))  # the segmenter sees the stored values
        judge = judge_of_fold(self.segmenter, device, self.fold, dataset)
        refuse_informed_judge(dataset, self.fold, judge)
        name = dataset.name
        logger.info("%s looks at %d training cases of fold %s of %s", judge.name, len(cases), self.fold, name)
        if self.dry_run:
            return
        dice = measure_dice(judge, view, cases)
        write_hard_cases(self.out, HardCases(name, self.fold, judge.name, judge.hash, dice))
        values = list(dice.values())
        mean, worst = float(np.mean(values)), min(dice, key=dice.get)
        logger.info("wrote %s: mean Dice %.3f, worst %.3f (%s)", self.out, mean, min(values), worst)


def measure_dice(judge: Segmenter, view: SliceView, cases: list[str]) -> dict[str, float]:
    """Case id -> mean Dice over its slices and the data set's regions; 1 where both are empty."""
    from rich.progress import track

    from law_synth.judging.agreement import MEAN, agreement

    dice = {}
    for case in track(cases, "segmenting training cases", transient=True):
        slices = view.slices([case], SLICES_PER_CASE)
        means = [agreement(judge.find_slice(view, s), view.read_mask(s), view)[MEAN] for s in slices]
        values = [1.0 if math.isnan(mean) else mean for mean in means] or [1.0]
        dice[case] = round(float(np.mean(values)), 6)
    return dice
