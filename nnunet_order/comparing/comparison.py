"""What `compare` does with its options on a data set: trainers, folds, device, stages and record."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from functools import cached_property

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold, read_splits
from dataset_conversion.system.errors import UserError
from nnunet_order.comparing.latency import latency_stage
from nnunet_order.comparing.measurement import Measured, chosen_device, chosen_folds, measured_cases
from nnunet_order.comparing.options import PRESETS, SCALES, STOCK, Compare
from nnunet_order.comparing.segmentation import (
    REAL_DATASET,
    Segmentation,
    prepare_real,
    refuse_shared_groups,
)
from nnunet_order.comparing.trainer_lookup import check_trainers
from nnunet_order.stages.experiment_record import ExperimentRecord
from nnunet_order.stages.runner import Pipeline


@dataclass(frozen=True)
class Comparison:
    """The options of a comparison, settled on its data set. UserError: options that do not fit the data."""

    options: Compare
    source: RawDataset

    @cached_property
    def paper(self) -> dict[str, tuple[float, float] | None]:
        """Trainer that runs -> the paper's mDice and mIoU, None where it has none."""
        options = self.options
        chosen = PRESETS[options.preset] if options.preset else dict.fromkeys(options.trainers)
        stock = SCALES[options.scale].stock
        found = {stock if name == STOCK else name: numbers for name, numbers in chosen.items()}
        if len(found) < len(chosen) or len(chosen) < len(options.trainers):
            raise UserError(
                f"found a trainer twice (with --scale {options.scale}, {STOCK} is {stock}), expected "
                "different --trainers; remove one"
            )
        return found

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        given = self.options.folds
        try:
            folds = chosen_folds(self.source, [fold if fold == "all" else int(fold) for fold in given])
        except ValueError:
            raise UserError(
                f"found --folds {' '.join(given)}, expected numbers or all; correct them"
            ) from None
        numbered = [fold for fold in folds if fold != "all"]
        count = len(read_splits(self.source)) if numbered else 0
        if len(set(folds)) < len(folds) or not all(0 <= fold < count for fold in numbered):
            raise UserError(
                f"found --folds {' '.join(given)}, expected different numbers below {count}; correct them"
            )
        return folds

    @cached_property
    def on(self) -> Measured:
        return measured_cases(self.source, self.folds, self.options.on)

    @cached_property
    def device(self) -> str:
        return chosen_device(self.options.out, self.options.device)

    @property
    def trainer_options(self) -> str:
        """NNUNET_ORDER_OPTIONS of our trainers."""
        given = self.options.trainer_options
        return SCALES[self.options.scale].options if given is None else given

    @cached_property
    def segmentations(self) -> list[Segmentation]:
        """Trainings in the order of the table."""
        options, on, device = self.trainer_options, self.on, self.device
        return [
            Segmentation("real", REAL_DATASET, trainer, fold, seed, fold, options, on, device)
            for trainer in self.paper
            for fold in self.folds
            for seed in self.options.seeds
        ]

    @cached_property
    def models(self) -> dict[str, str]:
        """Trainer -> nnU-Net's folder of one of its trained models; the network is the same in all."""
        models: dict[str, str] = {}
        for segmentation in self.segmentations:
            models.setdefault(segmentation.trainer, segmentation.model)
        return models

    def pipeline(self) -> Pipeline:
        """All stages, in the folder that they fill."""
        options = self.options
        check_trainers(self.paper, self.trainer_options, self.on)
        refuse_shared_groups(self.source, self.folds, self.on)
        stages = prepare_real(self.source, options.fraction, SCALES[options.scale].max_side)
        for segmentation in self.segmentations:
            stages += segmentation.stages(("plan",))
        if options.measures_latency:  # when all else is done, so that nothing disturbs it
            stages.append(latency_stage(self.models.values(), [stage.name for stage in stages]))
        return Pipeline(options.out, tuple(stages))

    def record(self) -> ExperimentRecord:
        """Content of experiment.json."""
        options = self.options
        return ExperimentRecord(
            kind="nnunet-order compare",
            command=shlex.join(["nnunet-order", *sys.argv[1:]]),
            title=f"{options.preset or 'Comparison of trainers'} on {self.source.folder.name}",
            config={**asdict(options), "out": str(options.out), "device": self.device},
            real=f"nnUNet_raw/{REAL_DATASET}",
            on=self.on,
            reference="real",
            arms=["real"],
            trainers=list(self.paper),
            folds=list(self.folds),
            seeds=list(options.seeds),
            segmentations=[segmentation.entry() for segmentation in self.segmentations],
            syntheses=[],
        )
