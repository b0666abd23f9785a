"""`law-synth experiment`: do synthetic cases help a segmenter, measured by stock commands without a leak."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace

from dataset_conversion.system.provenance import METRICS, require
from law_synth.experiment.config import Config, make_config, read_config
from law_synth.experiment.make_plan import make_plan
from law_synth.experiment.options import Experiment
from law_synth.experiment.presets import preset_content
from nnunet_order.stages.execution import carry_out
from nnunet_order.stages.runner import Pipeline

logger = logging.getLogger(__name__)


def experiment(options: Experiment) -> None:
    """Show or run the stages of an experiment. UserError: options or data that do not fit, a failed stage."""
    options.check()
    folder = options.folder.resolve()
    plan = make_plan(config_of(options), folder)
    if plan.syntheses:  # before hours of training, not after
        require("metrics", *METRICS)
    options.execution.check_device(plan.device)
    record = plan.record(shlex.join(["law-synth", *sys.argv[1:]]))
    if carry_out(options.execution, Pipeline(folder, plan.stages), record):
        logger.info("the report is %s", folder / "report.html")


def config_of(options: Experiment) -> Config:
    """What the file or preset says, with the changes of the command line. UserError: it is wrong."""
    if options.preset is not None:
        content = preset_content(options.preset, options.scale, options.dataset)
        config = make_config(content, options.preset)
    else:
        config = read_config(options.config)
    changes = {"dataset": options.dataset, "rounds": options.rounds}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    config.check()
    return config
