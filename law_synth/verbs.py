"""The verbs of `law-synth`."""

from __future__ import annotations

from dataset_conversion.system.verbs import Verb, run_verb
from law_synth.audit.options import Audit
from law_synth.base.options import InitBase
from law_synth.evaluation.options import Evaluate
from law_synth.experiment.options import Demo, Experiment, Report
from law_synth.generation.options import Generate
from law_synth.mining.options import Mine
from law_synth.training.options import Train

MODELS = ("diffusers", "transformers")
DIFFUSERS = (*MODELS, "accelerate")
EXPERIMENT = (*DIFFUSERS, "jinja2")

VERBS = {
    "init-base": Verb(InitBase, "law_synth.base.init_base:init_base", "synth", MODELS),
    "train": Verb(Train, "law_synth.training.train:train", "synth", DIFFUSERS),
    "generate": Verb(Generate, "law_synth.generation.generate:generate", "synth", DIFFUSERS),
    "mine": Verb(Mine, "law_synth.mining.mine:mine"),
    "evaluate": Verb(Evaluate, "law_synth.evaluation.evaluate:evaluate"),
    "audit": Verb(Audit, "law_synth.audit.audit:audit"),
    "experiment": Verb(Experiment, "law_synth.experiment.experiment:experiment", "synth", EXPERIMENT),
    "report": Verb(Report, "law_synth.experiment.page.report:report", "synth", ("jinja2",)),
    "demo": Verb(Demo, "law_synth.experiment.demo:demo", "synth", EXPERIMENT),
}


def read_and_run() -> None:
    """Do what the command line asks for."""
    description = "LAW: synthetic training cases for nnU-Net from a mask-conditioned ControlNet."
    run_verb(VERBS, "law-synth", description)
