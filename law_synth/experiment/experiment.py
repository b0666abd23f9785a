"""`law-synth experiment`: do synthetic cases help a segmenter, measured by stock commands without a leak."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from dataset_conversion.system.errors import UserError
from law_synth.experiment.presets import Preset, Scale
from nnunet_order.stages.options import Execution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Train segmenters with and without synthetic cases of every weighting, and report what that changes.

    Each stage is a command that can be run by hand (--dry-run prints them all). Stages that are done are
    skipped; a killed experiment goes on when the same command is given again. See docs/experiment.md.
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="CONFIG"), tyro.conf.Positional] = None
    """TOML file; or give --preset and --dataset."""
    preset: Preset | None = None
    """A table of the paper instead of CONFIG."""
    scale: Scale = "cpu"
    """Of --preset: sizes, steps, rates and base for two CPU cores, one GPU, or as in the paper."""
    dataset: str | None = None
    """Real data set of --preset, or instead of the one in CONFIG: id, name or folder."""
    rounds: int | None = None
    """Instead of the number in CONFIG."""
    out: Path | None = None
    """Folder of the experiment; by default the name of CONFIG or --preset and --scale, here."""

    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def run(self) -> None:
        from dataset_conversion.system.provenance import METRICS, require
        from law_synth.experiment.stages import make_plan
        from nnunet_order.stages.runner import Experiment as Stages

        require("synth", "diffusers", "transformers", "accelerate", "jinja2")
        folder = self._folder().resolve()
        plan = make_plan(self._config(), folder)
        if plan.syntheses:  # before hours of training, not after
            require("metrics", *METRICS)
        self.execution.check_device(plan.device)
        record = plan.record(shlex.join(["law-synth", *sys.argv[1:]]))
        if self.execution.carry_out(Stages(folder, plan.stages), record):
            logger.info("the report is %s", folder / "report.html")

    def _config(self):
        from law_synth.experiment.config import make_config, read_config
        from law_synth.experiment.presets import preset_content

        if (self.config is None) == (self.preset is None):
            found = "neither CONFIG nor --preset" if self.config is None else "both CONFIG and --preset"
            raise UserError(f"found {found}, expected one of them; see docs/experiment.md")
        if self.preset is not None:
            if self.dataset is None:
                raise UserError(f"found --preset {self.preset} without --dataset, expected the real data set")
            config = make_config(preset_content(self.preset, self.scale, self.dataset), self.preset)
        else:
            config = read_config(self.config)
        changes = {"dataset": self.dataset, "rounds": self.rounds}
        config = replace(config, **{name: value for name, value in changes.items() if value is not None})
        config.check()
        return config

    def _folder(self) -> Path:
        if self.out is not None:
            return self.out
        return Path(self.config.stem if self.config else f"{self.preset}-{self.scale}")
