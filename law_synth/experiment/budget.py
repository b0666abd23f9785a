"""What keeps the arms of an experiment comparable: the iterations of an epoch, the number of samples."""

from __future__ import annotations

import numpy as np

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold, fold_cases
from law_synth.experiment.config import Config
from law_synth.view.slices import slice_axis, volume_grid
from nnunet_order.schedule import one_pass
from nnunet_order.small_network_trainer import SmallNetworkTrainer as Recipe
from nnunet_order.trainer_options import trainer_options


def iterations_per_epoch(config: Config, source: RawDataset) -> int:
    """Training steps per epoch of this package's trainers: one pass over the real cases, as without LAW."""
    options = trainer_options(config.trainer_options)
    batch = options.get("samples_per_step", Recipe.samples_per_step)
    cases = min(len(fold_cases(source, fold)[0]) for fold in config.folds) * config.fraction
    passed = one_pass(cases, median_slices(source), batch)
    return max(options.get("minimum_iterations", Recipe.minimum_iterations), passed)


def median_slices(dataset: RawDataset) -> float:
    """Slices of a case along the axis that nnU-Net's 2d configuration slices; 1 for pictures."""
    ids = [case.id for case in dataset.training_cases]
    axis = slice_axis(dataset, ids)
    if axis is None:
        return 1
    grids = [volume_grid(dataset, dataset.case(case_id).images[0]) for case_id in ids]
    return float(np.median([grid.shape[axis] for grid in grids]))


def samples(config: Config, source: RawDataset, fold: Fold) -> dict[str, int]:
    """--samples of law-synth generate where the experiment settles it, else nothing.

    nnU-Net draws a case first and then one of its slices, so a synthetic case of one slice is seen as often
    as a whole volume. Therefore each real volume gets one synthetic case.
    """
    per_real = config.synthetic_per_real
    if per_real is None and source.holds_volumes and "samples" not in config.generate:
        per_real = 1.0
    if per_real is None:
        return {}
    return {"samples": max(1, round(per_real * config.fraction * len(fold_cases(source, fold)[0])))}
