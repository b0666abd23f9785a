"""The options of `law-synth experiment`, `report` and `demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed
from law_synth.experiment.presets import Preset, Scale
from nnunet_order.stages.options import Execution


@dataclass(frozen=True)
class Experiment:
    """Train segmenters with and without synthetic cases of every weighting, and report what that changes.

    Each stage is a command that can also be run by hand; --dry-run prints them all. Finished stages are
    skipped. If the experiment is killed, the same command continues it. docs/experiment.md describes
    experiments.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="CONFIG"), tyro.conf.Positional] = None
    """The TOML file that describes the experiment. Alternatively, give --preset and --dataset."""
    preset: Preset | None = None
    """Repeat this table of the paper instead of reading CONFIG."""
    scale: Scale = "cpu"
    """Run --preset with sizes, steps, rates and a base for two CPU cores, for one GPU, or as in the paper."""
    dataset: str | None = None
    """The id, name or folder of the real data set for --preset, or in place of the one in CONFIG."""
    rounds: int | None = None
    """Run this many rounds in place of the number in CONFIG."""
    out: Path | None = None
    """The folder of the experiment; by default one here, named after CONFIG or --preset and --scale."""

    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def check(self) -> None:
        """UserError: options that contradict each other."""
        if (self.config is None) == (self.preset is None):
            found = "neither CONFIG nor --preset" if self.config is None else "both CONFIG and --preset"
            raise UserError(f"found {found}, expected one of them; see docs/experiment.md")
        if self.preset is not None and self.dataset is None:
            raise UserError(
                f"found --preset {self.preset} without --dataset, expected the real data set; add --dataset"
            )
        self.execution.check()

    @property
    def folder(self) -> Path:
        """Folder of the experiment."""
        if self.out is not None:
            return self.out
        return Path(self.config.stem if self.config else f"{self.preset}-{self.scale}")


@dataclass(frozen=True)
class Report:
    """Write results/*.csv and report.html from what an experiment has produced; it may still be running."""

    out: Annotated[Path, tyro.conf.Positional]
    """The folder of the experiment."""

    def check(self) -> None:
        """Any folder may be asked for."""


@dataclass(frozen=True)
class Demo:
    """Run a whole experiment on drawn polyps or CT volumes, and write report.html.

    It draws the data, trains a base model and LAW on them, generates cases, and trains nnU-Net and ORDER with
    and without those cases. Generated polyps are filtered. All of it takes 8 to 12 minutes on 2 CPU cores, or
    14 with CT volumes. If the demo is killed, the same command continues it.
    """

    out: Path | None = None
    """The folder for data, models and the report; by default law_demo, or law_demo_ct for CT volumes."""
    kind: Literal["endoscopy", "ct"] = "endoscopy"
    """Draw pictures of polyps, or CT volumes with kidneys and tumours, whose slices LAW learns."""
    cases: int | None = None
    """Draw this many training cases; by default 60 pictures or 16 volumes."""
    test_cases: int | None = None
    """Draw this many test cases; by default 24 pictures or 8 volumes."""
    size: int = 64
    """The side of a picture or slice in pixels."""
    slices: int | None = None
    """Draw this many slices per volume, with --kind ct only; by default 10."""
    seed: int = 0
    """The seed of drawing, training and generation."""
    jobs: int = 2
    """Run this many stages at a time."""
    again: bool = False
    """Rerun the stages that other versions of the packages finished, and all stages that follow them."""

    def check(self) -> None:
        """UserError: options that contradict each other, or impossible numbers."""
        check_seed(self.seed)
        if self.slices is not None and self.kind != "ct":
            raise UserError(f"found --slices {self.slices} with pictures, expected --kind ct; drop it")
        Execution(jobs=self.jobs).check()

    @property
    def folder(self) -> Path:
        """Folder for everything."""
        return self.out or Path("law_demo_ct" if self.kind == "ct" else "law_demo")
