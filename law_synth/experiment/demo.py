"""`law-synth demo`: the whole loop on drawn polyps, on two CPU cores in minutes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PHANTOM = "Dataset990_Phantom"


@dataclass(frozen=True)
class Demo:
    """Draw polyps, train a base and LAW on them, generate and filter cases, train stock nnU-Net and ORDER
    with and without them, and write report.html: within 15 minutes on 2 CPU cores.

    Everything is an experiment of the ordinary kind; a killed demo goes on where it was.
    """

    out: Path = Path("law_demo")
    """Folder for data, models and the report."""
    cases: int = 60
    """Training images."""
    test_cases: int = 24
    """Test images."""
    size: int = 64
    """Image side in pixels."""
    seed: int = 0
    """Of drawing, training and generation."""
    jobs: int = 2
    """Stages at a time."""

    def run(self) -> None:
        from dataset_conversion.raw_writer import write_json
        from law_synth.experiment.config import make_config
        from law_synth.experiment.plan import make_plan
        from law_synth.requirements_hint import require
        from nnunet_order.experiment.runner import Experiment, make_workers
        from nnunet_order.experiment.stage import Stage

        require("synth", "diffusers", "transformers", "accelerate", "jinja2")
        require("metrics", "timm", "open_clip")
        began = time.perf_counter()
        folder = self.out.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        draw = (
            f"nnunet-order convert phantom --out {PHANTOM} --cases {self.cases} "
            f"--test-cases {self.test_cases} --size {self.size} --seed {self.seed}"
        )
        Experiment(folder / "drawn", (Stage("draw", (draw,), (PHANTOM,)),)).run()
        plan = make_plan(make_config(self.content, "demo"), folder)
        write_json(folder / "experiment.json", plan.record("law-synth demo"))
        Experiment(folder, plan.stages).run(make_workers(self.jobs, ()))
        minutes = (time.perf_counter() - began) / 60
        logger.info("all of it took %.1f minutes; the report is %s", minutes, folder / "report.html")

    @property
    def content(self) -> dict:
        """What its configuration file would hold."""
        return {
            "title": "Demo: drawn polyps",
            "dataset": str(self.out.resolve() / "drawn" / PHANTOM),
            "arms": ["real", "law"],
            "segmenters": ["nnUNetTrainerORDER", "nnUNetTrainer_1epoch"],
            "seeds": [self.seed],
            "trainer_options": "epochs=5 learning_rate=5e-3",
            "device": "cpu",
            "init_base": {"vae_steps": 200, "unet_steps": 450, "image_size": self.size},
            "train": {
                "preset": "light",
                "batch_size": 16,
                "gradient_accumulation": 1,
                "learning_rate": 3e-4,
                "max_steps": 160,
                "sample_every": 40,
            },
            "generate": {"min_agreement": 0.1},
        }
