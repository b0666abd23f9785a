"""`nnunet-order demo`: all the way from drawn polyps to a table and a picture by stock nnU-Net commands."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dataset_conversion.system.options import check_seed
from nnunet_order.stages.runner import Experiment, make_workers
from nnunet_order.stages.stage import Stage
from nnunet_order.trainer_options import OPTIONS_VARIABLE

logger = logging.getLogger(__name__)

RAW = "nnUNet_raw/Dataset990_Phantom"
PREPROCESSED = "nnUNet_preprocessed/Dataset990_Phantom"
RESULTS = "nnUNet_results/Dataset990_Phantom"
TRAINERS = {"ORDER": "nnUNetTrainerORDER_5epochs", "MK-UNet": "nnUNetTrainerMKUNet_5epochs"}


@dataclass(frozen=True)
class Demo:
    """Draw polyps, train ORDER and MK-UNet with stock nnU-Net, predict, evaluate: about 3 minutes on 2 cores.

    Every step is a command that is printed and can be run by hand: commands.sh holds them all. A killed demo
    goes on where it was, and changed options repeat what depends on them.
    """

    out: Path = Path("order_demo")
    """Folder for data, models and results."""
    cases: int = 64
    """Training images."""
    test_cases: int = 24
    """Test images."""
    size: int = 128
    """Image side in pixels."""
    seed: int = 0
    """Of the drawing and of the trainings."""
    again: bool = False
    """Run stages that other versions of the packages finished once more, and all that follow them."""

    def run(self) -> None:
        """UserError: a command failed, or `out` holds something else."""
        from nnunet_order.evaluate import Evaluate

        check_seed(self.seed)
        start = time.perf_counter()
        Experiment(self.out, self.stages).run(make_workers(jobs=len(TRAINERS), gpus=()), self.again)
        predictions = tuple(f"{name}={self.out / 'predictions' / name}" for name in TRAINERS)
        Evaluate(dataset=str(self.out / RAW), predictions=predictions, out=self.out / "evaluation").run()
        logger.info("all of it took %.0f s", time.perf_counter() - start)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Draw, plan, and for each network train and predict."""
        draw = (
            f"nnunet-order convert phantom --out {RAW} --cases {self.cases} --test-cases {self.test_cases} "
            f"--size {self.size} --seed {self.seed}"
        )
        plan = "nnUNetv2_plan_and_preprocess -d 990 -c 2d -np 1 -npfp 1 --verify_dataset_integrity"
        stages = [
            # So that it writes nothing there: the folder is the next stage's.
            Stage("draw", (draw,), (RAW,), environment={"nnUNet_preprocessed": ""}),
            Stage("plan", (plan,), (PREPROCESSED,), ("draw",), {"nnUNet_n_proc_DA": "1"}),
        ]
        for name, trainer in TRAINERS.items():
            stages += self._network(name, trainer)
        return tuple(stages)

    def _network(self, name: str, trainer: str) -> list[Stage]:
        fold, predictions = f"{RESULTS}/{trainer}__nnUNetPlans__2d/fold_0", f"predictions/{name}"
        model = f"-tr {trainer} -device {self._device}"
        train = f"nnUNetv2_train 990 2d 0 {model} --c"
        predict = f"nnUNetv2_predict -i {RAW}/imagesTs -o {predictions} -d 990 -c 2d -f 0 {model}"
        modest = {"nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
        seeded = {
            **modest,
            "NNUNET_ORDER_SEED": str(self.seed),
            "nnUNet_n_proc_DA": "0",
            OPTIONS_VARIABLE: "",
        }
        return [
            Stage(f"train_{name}", (train,), (fold,), ("plan",), seeded),
            Stage(
                f"predict_{name}",
                (f"{predict} -npp 1 -nps 1",),
                (predictions,),
                (f"train_{name}",),
                {"nnUNet_compile": "f"},
            ),
        ]

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
