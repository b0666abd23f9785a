"""`law-synth mine`: which training cases a segmenter finds hard, so that their masks get more images."""

from __future__ import annotations

import logging
import math

import numpy as np
from rich.progress import track

from dataset_conversion.raw.dataset import find_dataset
from dataset_conversion.raw.folds import leak_free_fold
from dataset_conversion.system.errors import UserError, check_writable
from law_synth.judging.agreement import MEAN, agreement
from law_synth.judging.segmenter import Segmenter, judge_of_fold
from law_synth.leaks import refuse_informed_judge
from law_synth.mining.options import Mine
from law_synth.records.hard_cases import FORMAT, HardCases, is_hard_cases, write_hard_cases
from law_synth.view.slices import SliceView, view_of
from nnunet_order.devices import pick_device

logger = logging.getLogger(__name__)

SLICES_PER_CASE = 16  # of volumes, evenly spaced among those with foreground


def mine(options: Mine) -> None:
    """Write the Dice of each training case.

    UserError: data set, fold, model or --out cannot be used, or the model would leak.
    """
    options.check()
    out, fold = options.out, options.fold
    if out.exists() and not is_hard_cases(out):
        raise UserError(f"{out}: found another file, expected none or one of law-synth mine; change --out")
    check_writable(out)
    device, dataset = pick_device(options.device), find_dataset(options.dataset)
    cases, _ = leak_free_fold(dataset, fold)
    view = view_of(dataset, cases, window=(0, 1))  # the segmenter sees the stored values
    judge = judge_of_fold(options.segmenter, device, fold, dataset)
    refuse_informed_judge(dataset, fold, judge)
    logger.info("%s looks at %d training cases of fold %s of %s", judge.name, len(cases), fold, dataset.name)
    if options.dry_run:
        return
    dice = measure_dice(judge, view, cases)
    write_hard_cases(out, HardCases(FORMAT, dataset.name, fold, judge.name, judge.hash, dice))
    mean, worst = float(np.mean(list(dice.values()))), min(dice, key=dice.get)
    logger.info("wrote %s: mean Dice %.3f, worst %.3f (%s)", out, mean, dice[worst], worst)


def measure_dice(judge: Segmenter, view: SliceView, cases: list[str]) -> dict[str, float]:
    """Case id -> mean Dice over its slices and the data set's regions; 1 where both are empty."""
    dice = {}
    for case in track(cases, "segmenting training cases", transient=True):
        slices = view.slices([case], SLICES_PER_CASE)
        means = [agreement(judge.find_slice(view, s), view.read_mask(s), view)[MEAN] for s in slices]
        values = [1.0 if math.isnan(mean) else mean for mean in means] or [1.0]
        dice[case] = round(float(np.mean(values)), 6)
    return dice
