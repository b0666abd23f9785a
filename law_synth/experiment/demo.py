"""`law-synth demo`: the whole loop on drawn polyps or CT volumes, on two CPU cores in minutes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed

logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What is drawn."""

    title: str
    dataset: str
    cases: int
    test_cases: int
    trainer_options: str
    init_base: dict
    train: dict
    min_agreement: float


KINDS = {
    "endoscopy": Kind(
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
    "ct": Kind(
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


@dataclass(frozen=True)
class Demo:
    """Draw polyps or CT volumes, train a base and LAW on them, generate cases (filtered, of polyps), train
    nnU-Net and ORDER with and without them, and write report.html: 8 to 12 (CT: 14) minutes on 2 CPU cores.

    Everything is an experiment of the ordinary kind; a killed demo goes on where it was.
    """

    out: Path | None = None
    """Folder for data, models and the report; by default law_demo, of CT volumes law_demo_ct."""
    kind: Literal["endoscopy", "ct"] = "endoscopy"
    """Pictures of polyps, or CT volumes with kidneys and tumours, whose slices LAW learns."""
    cases: int | None = None
    """Training cases; by default 60 pictures or 16 volumes."""
    test_cases: int | None = None
    """Test cases; by default 24 pictures or 8 volumes."""
    size: int = 64
    """Side of a picture or slice in pixels."""
    slices: int | None = None
    """Of a volume, with --kind ct; by default 10."""
    seed: int = 0
    """Of drawing, training and generation."""
    jobs: int = 2
    """Stages at a time."""
    again: bool = False
    """Run stages that other versions of the packages finished once more, and all that follow them."""

    def run(self) -> None:
        from dataset_conversion.system.provenance import METRICS, require
        from law_synth.experiment.config import make_config
        from law_synth.experiment.stages import make_plan
        from nnunet_order.stages.options import begin, begun_record
        from nnunet_order.stages.runner import Experiment, make_workers
        from nnunet_order.stages.stage import Stage

        require("synth", "diffusers", "transformers", "accelerate", "jinja2")
        require("metrics", *METRICS)
        check_seed(self.seed)
        draw, workers = self.draw_command, make_workers(self.jobs, ())
        began = time.perf_counter()
        folder = self._folder.resolve()
        dataset = KINDS[self.kind].dataset
        kind = f"law-synth demo --kind {self.kind}"
        begin(folder, {**begun_record(folder), "kind": kind})
        Experiment(folder / "drawn", (Stage("draw", (draw,), (dataset,)),)).run(again=self.again)
        plan = make_plan(make_config(self.content, "demo"), folder)
        begin(folder, plan.record("law-synth demo", kind))
        Experiment(folder, plan.stages).run(workers, self.again)
        minutes = (time.perf_counter() - began) / 60
        logger.info("all of it took %.1f minutes; the report is %s", minutes, folder / "report.html")

    @property
    def _folder(self) -> Path:
        return self.out or Path("law_demo_ct" if self.kind == "ct" else "law_demo")

    @property
    def draw_command(self) -> str:
        """UserError: slices of pictures."""
        if self.slices is not None and self.kind != "ct":
            raise UserError(f"found --slices {self.slices} with pictures, expected --kind ct; drop it")
        kind = KINDS[self.kind]
        cases = kind.cases if self.cases is None else self.cases
        test_cases = kind.test_cases if self.test_cases is None else self.test_cases
        volumes = f" --kind ct --slices {self.slices or SLICES}" if self.kind == "ct" else ""
        return (
            f"nnunet-order convert phantom{volumes} --out {kind.dataset} --cases {cases} "
            f"--test-cases {test_cases} --size {self.size} --seed {self.seed}"
        )

    @property
    def content(self) -> dict:
        """What its configuration file would hold."""
        kind = KINDS[self.kind]
        return {
            "title": kind.title,
            "dataset": str(self._folder.resolve() / "drawn" / kind.dataset),
            "arms": ["real", "law"],
            "segmenters": ["nnUNetTrainerORDER", "nnUNetTrainer_1epoch"],
            "seeds": [self.seed],
            "trainer_options": kind.trainer_options,
            "device": "cpu",
            "init_base": {**kind.init_base, "image_size": self.size},
            "train": {
                "preset": "light",
                "batch_size": 16,
                "gradient_accumulation": 1,
                **kind.train,
            },
            "generate": {"min_agreement": kind.min_agreement},
        }
