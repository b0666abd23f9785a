"""The verb `demo`: from drawn polyps to a table and a picture with stock nnU-Net commands."""

from __future__ import annotations

import logging
import time
from functools import cache

from nnunet_order.evaluate import evaluate
from nnunet_order.options import Demo, Evaluate
from nnunet_order.registry import five_epochs
from nnunet_order.stages.runner import Pipeline, make_workers
from nnunet_order.stages.stage import Stage
from nnunet_order.trainer_options import OPTIONS_VARIABLE

logger = logging.getLogger(__name__)

RAW = "nnUNet_raw/Dataset990_Phantom"
PREPROCESSED = "nnUNet_preprocessed/Dataset990_Phantom"
RESULTS = "nnUNet_results/Dataset990_Phantom"
JOBS = 2  # trainings at a time


def demo(options: Demo) -> None:
    """Run the stages and evaluate. UserError: bad options, a command failed, `out` holds something else."""
    options.check()
    start = time.perf_counter()
    Pipeline(options.out, stages(options)).run(
        make_workers(jobs=min(JOBS, len(options.networks))), options.again
    )
    predictions = tuple(f"{name}={options.out / 'predictions' / name}" for name in options.networks)
    evaluate(
        Evaluate(dataset=str(options.out / RAW), predictions=predictions, out=options.out / "evaluation")
    )
    logger.info("the demo took %.0f s", time.perf_counter() - start)


def stages(options: Demo) -> tuple[Stage, ...]:
    """Draw, plan, and for each network train and predict."""
    draw = (
        f"nnunet-order convert phantom --out {RAW} --cases {options.cases} --test-cases {options.test_cases} "
        f"--size {options.size} --seed {options.seed}"
    )
    plan = "nnUNetv2_plan_and_preprocess -d 990 -c 2d -np 1 -npfp 1 --verify_dataset_integrity"
    found = [
        # Without the variable it writes nothing there: the folder is the next stage's.
        Stage("draw", (draw,), (RAW,), environment={"nnUNet_preprocessed": ""}),
        Stage("plan", (plan,), (PREPROCESSED,), ("draw",), {"nnUNet_n_proc_DA": "1"}),
    ]
    device = _device()
    for network in options.networks:
        found += _stages_of_network(network, device, options.seed)
    return tuple(found)


def _stages_of_network(network: str, device: str, seed: int) -> list[Stage]:
    trainer = five_epochs(network)
    fold, predictions = f"{RESULTS}/{trainer}__nnUNetPlans__2d/fold_0", f"predictions/{network}"
    model = f"-tr {trainer} -device {device}"
    train = f"nnUNetv2_train 990 2d 0 {model} --c"
    predict = f"nnUNetv2_predict -i {RAW}/imagesTs -o {predictions} -d 990 -c 2d -f 0 {model}"
    modest = {"nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    seeded = {
        **modest,
        "NNUNET_ORDER_SEED": str(seed),
        "nnUNet_n_proc_DA": "0",
        OPTIONS_VARIABLE: "",
    }
    return [
        Stage(f"train_{network}", (train,), (fold,), ("plan",), seeded, resumes=True),
        Stage(
            f"predict_{network}",
            (f"{predict} -npp 1 -nps 1",),
            (predictions,),
            (f"train_{network}",),
            {"nnUNet_compile": "f"},
        ),
    ]


@cache
def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
