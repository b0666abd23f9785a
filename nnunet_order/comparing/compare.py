"""The verb `compare`: trainers side by side on real data, as in the paper's Tables 3, 5 and 6."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import tyro

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed
from nnunet_order.comparing.segmentation import (
    REAL_DATASET,
    Segmentation,
    check_trainers,
    prepare_real,
    refuse_shared_groups,
)
from nnunet_order.comparing.table import print_table, table_rows
from nnunet_order.stages.options import FORMAT, Execution, begun_record
from nnunet_order.stages.runner import Experiment

STOCK = "nnUNetTrainer"
PRESETS = {  # trainer -> (mDice, mIoU) of the paper
    "paper-table3": {
        STOCK: (85.7, 83.4),
        "nnUNetTrainerUNeXt": (74.9, 70.1),
        "nnUNetTrainerEGEUNet": (74.1, 69.2),
        "nnUNetTrainerMKUNet": (75.3, 71.2),
        "nnUNetTrainerORDER": (81.3, 81.7),
    },
    "paper-table5": {
        "nnUNetTrainerMKUNet": (75.3, 71.2),
        "nnUNetTrainerORDER_all": (77.3, 73.3),
        "nnUNetTrainerORDER": (81.3, 81.7),
    },
    "paper-table6": {
        "nnUNetTrainerMKUNet": (75.3, 71.2),
        "nnUNetTrainerORDER_none": None,  # the paper's "none" has MK-UNet's gated skips
        "nnUNetTrainerORDER_early": (78.1, 74.8),
        "nnUNetTrainerORDER_mid": (78.3, 75.1),
        "nnUNetTrainerORDER": (81.3, 81.7),
        "nnUNetTrainerORDER_all": (79.2, 75.9),
    },
}


@dataclass(frozen=True)
class Scale:
    """Sizes and steps of a comparison."""

    max_side: int | None
    options: str
    """NNUNET_ORDER_OPTIONS of our trainers."""
    stock: str
    """What stands for nnUNetTrainer, which reads no options."""


SCALES = {
    "cpu": Scale(64, "epochs=15 learning_rate=5e-3", f"{STOCK}_5epochs"),
    "gpu": Scale(256, "epochs=30 learning_rate=5e-3", f"{STOCK}_20epochs"),
    "paper": Scale(None, "", STOCK),
}


@dataclass(frozen=True)
class Compare:
    """Train, predict and score several trainers on one data set by stock commands; a table with intervals.

    A killed comparison goes on where it was; a finished one prints its table again.
    """

    dataset: str
    """Raw data set: id, DatasetXXX_NAME or folder."""
    out: Path
    """Folder for everything that this makes."""
    preset: Literal["paper-table3", "paper-table5", "paper-table6"] | None = None
    """The trainers of one of the paper's tables."""
    trainers: tuple[str, ...] = ()
    """Any that nnUNetv2_train finds, instead of a preset's; the others are compared with the first."""
    scale: Literal["cpu", "gpu", "paper"] = "paper"
    """Sizes and steps: 64 px and 15 epochs, 256 px and 30 epochs, or as the paper; volumes keep theirs."""
    trainer_options: str | None = None
    """NNUNET_ORDER_OPTIONS of this package's trainers, instead of the scale's."""
    folds: tuple[str, ...] = ()
    """Numbers, or all; default: all if the test cases are labelled, else all numbers of folds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each; stock nnU-Net trainers know no seed, theirs are repetitions."""
    on: Literal["auto", "test", "validation"] = "auto"
    """What to measure on; auto: test cases for fold all, validation cases for numbered folds."""
    fraction: float = 1.0
    """Share of the training cases to use."""
    device: str = "auto"
    """cuda, cpu or mps; auto: what this folder was begun with, else CUDA where there is one."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def run(self) -> None:
        plan = Comparison(self, find_dataset(self.dataset))
        self.execution.check_device(plan.device)
        experiment = plan.experiment()
        if self.execution.carry_out(experiment, plan.record()):
            print_table(table_rows(self.out, plan), self.out)


@dataclass(frozen=True)
class Comparison:
    """What a `Compare` comes to on its data set."""

    verb: Compare
    source: RawDataset

    @cached_property
    def paper(self) -> dict[str, tuple[float, float] | None]:
        """Trainer that runs -> the paper's mDice and mIoU, None where it has none. UserError: no trainers."""
        verb = self.verb
        if bool(verb.trainers) == bool(verb.preset):
            raise UserError(
                "found both or neither of --preset and --trainers, expected one of them; give e.g. "
                "--trainers nnUNetTrainerMKUNet nnUNetTrainerORDER"
            )
        chosen = (
            list(PRESETS[verb.preset].items()) if verb.preset else [(name, None) for name in verb.trainers]
        )
        stock = SCALES[verb.scale].stock
        found = {stock if name == STOCK else name: numbers for name, numbers in chosen}
        if len(found) < len(chosen):
            raise UserError(
                f"found a trainer twice (of --scale {verb.scale}, {STOCK} is {stock}), expected different "
                "--trainers; remove one"
            )
        return found

    @cached_property
    def folds(self) -> tuple[int | str, ...]:
        """UserError: there is no such fold."""
        if not self.verb.folds:
            count = len(read_splits(self.source)) if not self._has_labelled_tests else 0
            return tuple(range(count)) or ("all",)
        try:
            folds = tuple(fold if fold == "all" else int(fold) for fold in self.verb.folds)
        except ValueError:
            raise UserError(
                f"found --folds {' '.join(self.verb.folds)}, expected numbers or all; correct them"
            ) from None
        numbered = [fold for fold in folds if fold != "all"]
        count = len(read_splits(self.source)) if numbered else 0
        if len(set(folds)) < len(folds) or (numbered and not 0 <= min(numbered) <= max(numbered) < count):
            raise UserError(f"found --folds {folds}, expected different ones below {count}; correct them")
        return folds

    @cached_property
    def on(self) -> str:
        """UserError: no labels, or no cases, to measure on."""
        on = self.verb.on
        if on == "auto":
            on = "test" if "all" in self.folds else "validation"
        if on == "test" and not self._has_labelled_tests:
            raise UserError(
                f"{self.source.folder}: found no labelled test cases, expected imagesTs and labelsTs to "
                "measure on; give numbered --folds, which are measured on their validation cases"
            )
        if on == "validation" and "all" in self.folds:
            raise UserError("found --folds all, expected numbers for --on validation; give --folds 0 1 2 3 4")
        return on

    @property
    def _has_labelled_tests(self) -> bool:
        tests = self.source.test_cases
        return bool(tests) and all(case.label is not None for case in tests)

    @cached_property
    def device(self) -> str:
        if self.verb.device != "auto":
            return self.verb.device
        # A cluster's login node has no GPU, and its stages must be the same.
        if begun := begun_record(self.verb.out).get("config", {}).get("device"):
            return begun
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def options(self) -> str:
        """NNUNET_ORDER_OPTIONS of our trainers."""
        given = self.verb.trainer_options
        return SCALES[self.verb.scale].options if given is None else given

    @cached_property
    def segmentations(self) -> list[Segmentation]:
        """Trainings in the order of the table."""
        verb = self.verb
        if not verb.seeds or len(set(verb.seeds)) < len(verb.seeds):
            raise UserError(f"found --seeds {verb.seeds}, expected different numbers from 0; correct them")
        for seed in verb.seeds:
            check_seed(seed, "--seeds")
        return [
            Segmentation("real", REAL_DATASET, trainer, fold, seed, fold, self.options, self.on, self.device)
            for trainer in self.paper
            for fold in self.folds
            for seed in verb.seeds
        ]

    def experiment(self) -> Experiment:
        """The stages. UserError: options that do not fit the data."""
        verb = self.verb
        if not 0 < verb.fraction <= 1:
            raise UserError(f"found --fraction {verb.fraction}, expected above 0, at most 1; correct it")
        check_trainers(self.paper, self.options, self.on)
        refuse_shared_groups(self.source, self.folds, self.on)
        stages = prepare_real(self.source, verb.fraction, SCALES[verb.scale].max_side)
        for segmentation in self.segmentations:
            stages += segmentation.stages(("plan",))
        return Experiment(verb.out, tuple(stages))

    def record(self) -> dict:
        """Content of experiment.json."""
        verb = self.verb
        return {
            "format": FORMAT,
            "kind": "nnunet-order compare",
            "title": f"{verb.preset or 'Comparison of trainers'} on {self.source.folder.name}",
            "command": shlex.join(["nnunet-order", *sys.argv[1:]]),
            "config": {**asdict(verb), "out": str(verb.out), "device": self.device},
            "real": f"nnUNet_raw/{REAL_DATASET}",
            "on": self.on,
            "reference": "real",
            "arms": ["real"],
            "trainers": list(self.paper),
            "folds": list(self.folds),
            "seeds": list(verb.seeds),
            "segmentations": [segmentation.entry() for segmentation in self.segmentations],
            "syntheses": [],
        }
