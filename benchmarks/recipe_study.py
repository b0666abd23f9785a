"""Which recipe suits a network? Trainings of one fold that differ in NNUNET_ORDER_OPTIONS or in the trainer.

    python benchmarks/recipe_study.py --dataset 510 --trainers nnUNetTrainerLite40K \
        --options "" "learning_rate=1e-2" "pretrained_rate=1" --out benchmarks/results/lite_recipe_64px

The stock command trains and validates. Nothing but the fold's validation cases is looked at. One JSON file
per run; a run whose file exists is skipped, and one that was killed goes on, so several processes may share
the folder if each has trainings of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).parent
DIGITS = 4


@dataclass(frozen=True)
class Study:
    """Train every trainer with every line of options and every seed."""

    dataset: str
    """Id or name of a data set that is planned and preprocessed."""
    out: Path
    """Folder of the results, one JSON file per run."""
    trainers: tuple[str, ...]
    options: tuple[str, ...] = ("",)
    """NNUNET_ORDER_OPTIONS, added to `common`."""
    common: str = "epochs=15"
    """NNUNET_ORDER_OPTIONS of all runs."""
    seeds: tuple[int, ...] = (0,)
    fold: int = 0
    device: str = "cpu"
    keep: bool = False
    """Keep the trained models."""


def run_name(trainer: str, options: str, fold: int, seed: int) -> str:
    """Also the name of the JSON file."""
    words = re.sub(r"[^A-Za-z0-9.=-]+", "_", options.strip())
    return "_".join(
        filter(None, (trainer.removeprefix("nnUNetTrainer"), words, f"fold{fold}", f"seed{seed}"))
    )


def train(study: Study, trainer: str, options: str, seed: int, results: Path) -> tuple[Path, float]:
    """The fold's folder, and the seconds that the command took; a killed training goes on."""
    begun = time.perf_counter()
    subprocess.run(
        [*f"nnUNetv2_train {study.dataset} 2d {study.fold} -tr {trainer} -device {study.device} --c".split()],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ
        | {
            "nnUNet_results": str(results),
            "nnUNet_extTrainer": str(HERE / "lite_recipe"),
            "nnUNet_n_proc_DA": "0",
            "NNUNET_ORDER_SEED": str(seed),
            "NNUNET_ORDER_OPTIONS": options,
        },
    )
    (fold,) = results.glob(f"*/*/fold_{study.fold}")
    return fold, time.perf_counter() - begun


def dice(fold: Path) -> dict[str, dict[str, float | None]]:
    """Validation case -> label or region -> Dice; null where neither prediction nor reference has it."""
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    found = {}
    for case in summary["metric_per_case"]:
        name = Path(case["reference_file"]).name.split(".")[0]
        scores = {label: float(values["Dice"]) for label, values in case["metrics"].items()}
        found[name] = {label: None if np.isnan(x) else round(x, DIGITS) for label, x in scores.items()}
    return found


def commit() -> str:
    """The revision that this file belongs to."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(study: Study) -> None:
    """Train what is missing."""
    study.out.mkdir(parents=True, exist_ok=True)
    for seed, trainer, given in itertools.product(study.seeds, study.trainers, study.options):
        name = run_name(trainer, given, study.fold, seed)
        file = study.out / f"{name}.json"
        if file.exists():
            continue
        print(name, flush=True)
        options = f"{study.common} {given}".strip()
        results = Path(os.environ["nnUNet_results"]) / "recipe_study" / study.out.name / name  # noqa: SIM112
        fold, seconds = train(study, trainer, options, seed, results)
        scores = dice(fold)
        means = [np.mean([x for x in case.values() if x is not None] or np.nan) for case in scores.values()]
        record = {
            "dataset": fold.parent.parent.name,
            "trainer": trainer,
            "options": options,
            "fold": study.fold,
            "seed": seed,
            "mDice": round(float(np.nanmean(means)), DIGITS),
            "seconds": round(seconds),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "device": study.device,
            "versions": {one: version(one) for one in ("law-order", "nnunetv2", "torch")},
            "commit": commit(),
            "dice": scores,
        }
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(record) + "\n")
        partial.replace(file)
        if not study.keep:
            shutil.rmtree(results)


if __name__ == "__main__":
    main(tyro.cli(Study))
