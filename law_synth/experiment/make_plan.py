"""What an experiment settles before its first stage: folds, device, budget, and whether the data will do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import drawn_cases, fold_cases
from dataset_conversion.subset import ConvertSubset, source_splits
from dataset_conversion.system.errors import UserError
from law_synth.experiment.budget import iterations_per_epoch
from law_synth.experiment.config import Config
from law_synth.experiment.stages import ExperimentPlan
from law_synth.leaks import cases_behind_base, refuse_informed_base
from law_synth.records.base import read_base_config
from law_synth.view.classes import lesion_classes
from law_synth.view.slices import refuse_shared_ids
from nnunet_order.comparing.measurement import chosen_device, chosen_folds, measured_cases
from nnunet_order.comparing.segmentation import refuse_shared_groups
from nnunet_order.comparing.trainer_lookup import check_trainers


def make_plan(config: Config, folder: Path) -> ExperimentPlan:
    """Read the real data and settle what depends on it. UserError: data or options that do not fit."""
    source = find_dataset(config.dataset)
    lesion_classes(source)
    refuse_shared_ids(source)
    folds = chosen_folds(source, config.folds)
    on = measured_cases(source, folds, config.on)
    config = replace(config, folds=folds, device=chosen_device(folder, config.device))
    judge = [config.judging_trainer] if config.judging_trainer else []
    check_trainers({*config.segmenters, *judge}, config.trainer_options, on)
    iterations = iterations_per_epoch(config, source)
    refuse_shared_groups(source, config.folds, on)
    if config.base and config.synthetic_arms:
        refuse_base_of_others(config, source)
    plan = ExperimentPlan(config, source, folder, on, iterations)
    plan.check()
    return plan


def refuse_base_of_others(config: Config, source: RawDataset) -> None:
    """UserError: a base that `init-base` made, from others than the training cases of every fold."""
    remedy = "give a table [init_base] instead of base"
    if cases_behind_base(config.base, source.origin) is None:
        raise UserError(
            f"{config.base}: found a base made from {read_base_config(config.base).dataset}, expected one "
            f"made from {source.origin}, or no audit can tell what it has seen; {remedy}"
        )
    case_ids = [case.id for case in source.training_cases]
    drawn = drawn_cases(case_ids, source_splits(source), config.fraction, ConvertSubset.seed)
    share = "" if config.fraction == 1 else f" of the share {config.fraction:g}"
    for fold in config.folds:
        trained = drawn.intersection(fold_cases(source, fold)[0])
        refuse_informed_base(config.base, source, trained, f"training cases{share} of fold {fold}", remedy)
