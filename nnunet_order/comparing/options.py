"""The options of `nnunet-order compare`: the paper's tables, networks by size, and the scales of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import Range, check_ranges, check_seed
from nnunet_order.stages.options import Execution

STOCK = "nnUNetTrainer"
SIZES = "sizes"
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
    SIZES: dict.fromkeys(
        (
            "nnUNetTrainerORDER",
            "nnUNetTrainerMKUNet",
            "nnUNetTrainerMKUNetWide",
            "nnUNetTrainerNanoNetC",
            "nnUNetTrainerUltraSeg130K",
            "nnUNetTrainerLite40K",
            "nnUNetTrainerLite95K",
            "nnUNetTrainerLite333K",
            "nnUNetTrainerLiteUNet",
            STOCK,
        )
    ),
}


@dataclass(frozen=True)
class ComparisonScale:
    """Sizes and steps of a comparison."""

    max_side: int | None
    options: str
    """NNUNET_ORDER_OPTIONS of our trainers."""
    stock: str
    """What stands for nnUNetTrainer, which reads no options."""


# On a few hundred images, the stock trainer sees more samples than ours: on Kvasir-SEG at 64 px, 1,250
# iterations of 44 against 825 of 16. nnU-Net has nothing between five epochs and one. One would be fewer
# iterations than ours (250), all at the first learning rate, which falls only from epoch to epoch. A
# comparison that finds a small network ahead must not owe that to nnU-Net's short training.
SCALES = {
    "cpu": ComparisonScale(64, "epochs=15 learning_rate=5e-3", f"{STOCK}_5epochs"),
    "gpu": ComparisonScale(256, "epochs=30 learning_rate=5e-3", f"{STOCK}_20epochs"),
    "paper": ComparisonScale(None, "", STOCK),
}


@dataclass(frozen=True)
class Compare:
    """Train several trainers on one data set with stock commands, and print a table of their scores.

    The table has confidence intervals. A killed comparison resumes when you give the same command again. A
    finished one prints its table again.
    """

    dataset: str
    """Raw data set: its id, its name (DatasetXXX_NAME) or its folder."""
    out: Path
    """Folder for everything that the comparison writes."""
    preset: Literal["paper-table3", "paper-table5", "paper-table6", "sizes"] | None = None
    """Compare the trainers of one of the paper's tables. sizes: ORDER, the networks of its size, the Lite
    networks and nnU-Net's default, with --latency."""
    trainers: tuple[str, ...] = ()
    """Compare these trainers instead of a preset's: any that nnUNetv2_train finds. The first one is the
    reference for the differences."""
    scale: Literal["cpu", "gpu", "paper"] = "paper"
    """Sizes and steps. cpu: 64 px and 15 epochs. gpu: 256 px and 30 epochs. paper: as in the paper. Volumes
    keep their size. nnUNetTrainer takes no options: nnUNetTrainer_5epochs stands for it with cpu,
    nnUNetTrainer_20epochs with gpu. On a few hundred images these see more samples than the others."""
    trainer_options: str | None = None
    """NNUNET_ORDER_OPTIONS for this package's trainers, instead of those of --scale."""
    folds: tuple[str, ...] = ()
    """Numbers of folds, or all. The default is all if the test cases have labels, and every numbered fold
    otherwise."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trainer is trained once per seed. Stock nnU-Net trainers have no seed: theirs are repetitions."""
    on: Literal["auto", "test", "validation"] = "auto"
    """The cases to measure on. auto: the test cases with --folds all, the validation cases otherwise."""
    fraction: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the training cases to use."""
    latency: bool = False
    """After the trainings, also measure how long each network takes for an image of 256 px with one CPU
    thread. Always done with --preset sizes."""
    device: str = "auto"
    """cuda, cpu or mps. auto: the device that this folder was begun with, else CUDA if PyTorch sees a GPU."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def check(self) -> None:
        """UserError: options that contradict each other, or impossible numbers."""
        if bool(self.trainers) == bool(self.preset):
            found = "both --preset and" if self.preset else "neither --preset nor"
            raise UserError(
                f"found {found} --trainers, expected one of them; give for example --trainers "
                "nnUNetTrainerMKUNet nnUNetTrainerORDER"
            )
        check_ranges(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"found --seeds {self.seeds}, expected different numbers from 0; correct them")
        for seed in self.seeds:
            check_seed(seed, "--seeds")
        self.execution.check()

    @property
    def measures_latency(self) -> bool:
        """Whether the table has latencies."""
        return self.latency or self.preset == SIZES
