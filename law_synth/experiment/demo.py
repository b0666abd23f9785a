"""`law-synth demo`: the whole loop on drawn polyps or CT volumes, on two CPU cores in minutes."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from dataset_conversion.system.provenance import METRICS, require
from law_synth.experiment.config import make_config
from law_synth.experiment.make_plan import make_plan
from law_synth.experiment.options import Demo
from nnunet_order.stages.experiment_record import begin, claim_folder
from nnunet_order.stages.runner import Pipeline, make_workers
from nnunet_order.stages.stage import Stage

logger = logging.getLogger(__name__)


class Drawing(NamedTuple):
    """What is drawn."""

    title: str
    dataset: str
    cases: int
    test_cases: int
    trainer_options: str
    init_base: dict
    train: dict
    min_agreement: float


DRAWINGS = {
    "endoscopy": Drawing(
        "Demo: drawn polyps",
        "Dataset990_Phantom",
        *(60, 24),
        "epochs=5 learning_rate=5e-3",
        {"vae_steps": 200, "unet_steps": 450},
        {"learning_rate": 3e-4, "max_steps": 160, "sample_every": 40},
        min_agreement=0.1,
    ),
    # Small organs among many: in as many steps of the default optimizer ORDER finds none of them. The wide
    # window shows the autoencoder the whole body, where the default one would be black but for the organs.
    # So little training hardly puts kidneys where the mask has them: a filter would keep few of them.
    "ct": Drawing(
        "Demo: drawn kidneys",
        "Dataset991_PhantomCT",
        *(16, 8),
        "epochs=12 learning_rate=1e-2 optimizer_name=AdamW",
        {"vae_steps": 500, "unet_steps": 500, "batch_size": 8, "flips": "horizontal", "window": (-160, 240)},
        {"learning_rate": 1e-3, "max_steps": 160, "sample_every": 40},
        min_agreement=0.0,
    ),
}
SLICES = 10


def demo(options: Demo) -> None:
    """Draw data, run the experiment on them, and say where the report is. UserError: a failed stage."""
    options.check()
    require("metrics", *METRICS)
    workers = make_workers(options.jobs)
    began = time.perf_counter()
    folder = options.folder.resolve()
    kind = f"law-synth demo --kind {options.kind}"
    claim_folder(folder, kind)
    draw = Stage("draw", (draw_command(options),), (DRAWINGS[options.kind].dataset,))
    Pipeline(folder / "drawn", (draw,)).run(again=options.again)
    plan = make_plan(make_config(demo_content(options), "demo"), folder)
    begin(folder, plan.record("law-synth demo", kind))
    Pipeline(folder, plan.stages).run(workers, options.again)
    minutes = (time.perf_counter() - began) / 60
    logger.info("the demo took %.1f minutes; the report is %s", minutes, folder / "report.html")


def draw_command(options: Demo) -> str:
    """The command that draws the data set."""
    drawing = DRAWINGS[options.kind]
    cases = drawing.cases if options.cases is None else options.cases
    test_cases = drawing.test_cases if options.test_cases is None else options.test_cases
    volumes = f" --kind ct --slices {options.slices or SLICES}" if options.kind == "ct" else ""
    return (
        f"nnunet-order convert phantom{volumes} --out {drawing.dataset} --cases {cases} "
        f"--test-cases {test_cases} --size {options.size} --seed {options.seed}"
    )


def demo_content(options: Demo) -> dict:
    """What the demo's configuration file would hold."""
    drawing = DRAWINGS[options.kind]
    return {
        "title": drawing.title,
        "dataset": str(options.folder.resolve() / "drawn" / drawing.dataset),
        "arms": ["real", "law"],
        "segmenters": ["nnUNetTrainerORDER", "nnUNetTrainer_1epoch"],
        "seeds": [options.seed],
        "trainer_options": drawing.trainer_options,
        "device": "cpu",
        "init_base": {**drawing.init_base, "image_size": options.size},
        "train": {
            "preset": "light",
            "batch_size": 16,
            "gradient_accumulation": 1,
            **drawing.train,
        },
        "generate": {"min_agreement": drawing.min_agreement},
    }
