"""The verbs of `law-synth`: one frozen dataclass per verb, read by tyro."""

from __future__ import annotations

from typing import Annotated

import tyro

from law_synth.audit.audit import Audit
from law_synth.base.init_base import InitBase
from law_synth.evaluation.evaluate import Evaluate
from law_synth.experiment.demo import Demo
from law_synth.experiment.experiment import Experiment
from law_synth.experiment.page.report import Report
from law_synth.generation.generate import Generate
from law_synth.mining.mine import Mine
from law_synth.training.options import Train

Verb = (
    Annotated[InitBase, tyro.conf.subcommand("init-base")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Mine, tyro.conf.subcommand("mine")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Experiment, tyro.conf.subcommand("experiment")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


def read_verb() -> Verb:
    """The verb and its options on the command line. SystemExit: help was asked for, or an option is wrong."""
    return tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[Verb],
        prog="law-synth",
        description="LAW: synthetic training cases for nnU-Net from a mask-conditioned ControlNet.",
    )
