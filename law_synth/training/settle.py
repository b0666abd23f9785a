"""What a training will do, settled and checked before anything is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import leak_free_fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json
from dataset_conversion.system.provenance import git_commit, package_versions
from law_synth.base.held_back import hold_back_cases
from law_synth.base.model import BaseModel
from law_synth.base.seen import chosen_slices, view_with_base
from law_synth.leaks import cases_behind_base, refuse_informed_base
from law_synth.records.base import BaseConfig, read_base_config
from law_synth.records.run import FORMAT, RunSettings, TrainedOn, UsedBase, default_run_folder
from law_synth.training.options import Train
from law_synth.view.classes import joined, lesion_classes
from law_synth.view.slices import Slice, SliceView

logger = logging.getLogger(__name__)

DEFAULT_SIZE, DEFAULT_GUIDANCE = 384, 9.0  # ADC's code


class TrainingPlan(NamedTuple):
    """What a training will do."""

    options: Train
    view: SliceView
    folder: Path
    config: RunSettings

    @property
    def effective_batch(self) -> int:
        """Samples per optimizer step."""
        return self.options.batch_size * self.options.gradient_accumulation * self.config.processes

    @property
    def content(self) -> dict:
        """What must be the same when a run goes on: neither paths nor how the batch is shared out."""
        names = ("fold", "train_cases", "monitor_cases", "view", "slices", "size", "prompt", "guidance_scale")
        free = ("batch_size", "gradient_accumulation", "mixed_precision", "gradient_checkpointing")
        settled = as_json(self.config)
        return (
            {name: value for name, value in self.config.options.items() if name not in free}
            | {name: settled[name] for name in names}
            | {
                "dataset": self.config.dataset.name,
                "base": self.config.base.hash,
                "effective_batch": self.effective_batch,
            }
        )


def chosen_dataset(options: Train) -> RawDataset:
    """The data set, checked before gigabytes of base model are read. UserError: labels, images, fold."""
    dataset = find_dataset(options.dataset)
    lesion_classes(dataset)
    leak_free_fold(dataset, options.fold)
    return dataset


def settle(options: Train, dataset: RawDataset, base: BaseModel, processes: int) -> TrainingPlan:
    """Settle cases, run folder and configuration. UserError: whatever does not fit together."""
    trained, _ = leak_free_fold(dataset, options.fold)
    of_base = read_base_config(base.source)
    if cases_behind_base(base.source, dataset.origin) is None:
        logger.warning(
            "%s was trained on %s: make sure that it holds no validation or test case of %s",
            *(base.source, of_base.dataset, dataset.folder.name),
        )
    refuse_informed_base(
        base.source,
        dataset,
        trained,
        expected=f"training cases of fold {options.fold}",
        remedy=f"make one with law-synth init-base --fold {options.fold}",
    )
    size = options.size or (DEFAULT_SIZE if of_base is None else of_base.image_size)
    if size % base.latent_factor:
        raise UserError(
            f"found --size {size}, expected a multiple of {base.latent_factor}, the pixels per latent cell "
            f"of {base.source}"
        )
    view = view_with_base(dataset, trained, options.window, base.source)
    slices = chosen_slices(view, trained, options.slices_per_case)
    shown = list(dict.fromkeys(one.case for one in slices))  # the others are volumes without lesions
    monitored = hold_back_cases(shown, options.monitor_cases, options.seed, dataset.groups)
    config = RunSettings(
        format=FORMAT,
        versions=package_versions("law-order", "torch", "diffusers", "accelerate", "transformers"),
        git_commit=git_commit(),
        options=options.recorded,
        processes=processes,
        dataset=TrainedOn(dataset.name, str(dataset.folder.resolve())),
        fold=options.fold,
        train_cases=[case_id for case_id in trained if case_id not in monitored],
        monitor_cases=monitored,
        view=view.record,
        slices=_indices(slices, trained) if view.is_volumetric else None,
        base=UsedBase(base.source, base.hash),
        size=size,
        prompt=default_prompt(view) if options.prompt is None else options.prompt,
        guidance_scale=_guidance_scale(options, of_base),
        trains_decoder=not options.freeze_decoder,
    )
    folder = options.out or default_run_folder(dataset.name, options.weighting, options.fold)
    return TrainingPlan(options, view, folder, config)


def _guidance_scale(options: Train, of_base: BaseConfig | None) -> float:
    """That of the options, else of the base, else of ADC's code."""
    if options.guidance_scale is not None:
        return options.guidance_scale
    known = of_base is not None and of_base.guidance_scale is not None
    return of_base.guidance_scale if known else DEFAULT_GUIDANCE


def default_prompt(view: SliceView) -> str:
    """What stands for every image."""
    return f"a medical image of {joined([f'a {name}' for name in view.classes.names])}"


def _indices(slices: list[Slice], case_ids: list[str]) -> dict[str, list[int]]:
    """Indices of each volume's slices."""
    indices = {case_id: [] for case_id in case_ids}
    for one in slices:
        indices[one.case].append(one.index)
    return indices


def describe(plan: TrainingPlan) -> None:
    """Say in one line what is going to happen."""
    config, options = plan.config, plan.options
    if plan.view.is_volumetric:
        logger.info(
            "%s holds volumes: training on %d of their 2D slices along axis %d (Z, Y, X), values %s to %s",
            config.dataset.name,
            len(config.slices_of(config.train_cases)),
            plan.view.axis,
            *(", ".join(f"{v:g}" for v in end) for end in (plan.view.window.low, plan.view.window.high)),
        )
    logger.info(
        "%s fold %s: %d cases at %d px, base %s, weighting %s%s, effective batch %d -> %s",
        config.dataset.name,
        config.fold,
        len(config.train_cases),
        config.size,
        config.base.source,
        options.weighting,
        " with teacher" if options.teaches else "",
        plan.effective_batch,
        plan.folder,
    )
