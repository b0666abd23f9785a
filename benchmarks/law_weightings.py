"""Which weighting follows the mask best? Train, generate and evaluate every arm with the real commands.

    python benchmarks/law_weightings.py --dataset 510 --base base510 --segmenter MODEL_FOLDER \
        --work law_study --results benchmarks/results/law_weightings --seeds 0 1 2
    python benchmarks/law_weightings.py ... --table

All arms take the same number of steps with the same noise, and generate from the same masks and noise. One
JSON file per arm and seed; an arm whose file exists is skipped, a killed one goes on where it was. Only arms
whose name ends in "+teacher" have a teacher.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from nnunet_order.bootstrap import interval, resampled_means

ARMS = {
    "uniform": ("uniform", "light"),
    "ratio": ("ratio", "light"),
    "ratio-clamped": ("ratio-clamped", "light"),
    "law": ("law", "light"),
    "difficulty": ("difficulty", "light"),
    "uniform+teacher": ("uniform", "paper"),
    "adaptive-distillation+teacher": ("adaptive-distillation", "paper"),
    "law+teacher": ("law", "paper"),
}
SMALL = 0.1  # lesions that cover less of their image


@dataclass(frozen=True)
class LawWeightings:
    """Run arms, or show the table of those that ran."""

    work: Path
    """Folder for runs and generated data sets."""
    results: Path
    """Folder of the JSON files."""
    dataset: str = ""
    base: Path = Path()
    segmenter: Path = Path()
    fold: str = "all"
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-4
    samples: int = 240
    table: bool = False
    """Show the table, run nothing."""


def run_arm(options: LawWeightings, arm: str, seed: int) -> None:
    weighting, preset = ARMS[arm]
    name = f"{arm}_{options.steps}steps_seed{seed}"
    file = options.results / f"{name}.json"
    if file.exists():
        return
    run, data = options.work / "runs" / name, options.work / name / "Dataset599_Synthetic"
    start = time.perf_counter()
    train = f"""train --dataset {options.dataset} --fold {options.fold} --base {options.base} --out {run}
        --weighting {weighting} --preset {preset} --seed {seed} --max-steps {options.steps} --guidance-scale 1
        --batch-size {options.batch_size} --gradient-accumulation 1 --learning-rate {options.learning_rate}
        --sample-every {options.steps // 4} --device cpu"""
    generate = f"""generate --trained-run {run} --out {data} --samples {options.samples} --original-size
        --seed 0 --guidance-scale 1 --max-similarity 1 --device cpu"""
    evaluate = (
        f"evaluate {data} --segmenter {options.segmenter} --out {data.parent / 'evaluation'} --device cpu"
    )
    for command in (train, generate, evaluate):
        subprocess.run(["law-synth", *command.split()], check=True)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    with (data.parent / "evaluation" / "per_case.csv").open() as lines:
        cases = list(csv.DictReader(lines))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    result = {
        "arm": arm,
        "seed": seed,
        "steps": options.steps,
        "commands": [" ".join(command.split()) for command in (train, generate, evaluate)],
        "commit": commit,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "nnunetv2")},
        "seconds": round(time.perf_counter() - start),
        "measures": json.loads((data.parent / "evaluation" / "evaluation.json").read_text())["measures"],
        "cases": cases,
        "last_log": log[-1],
        "fixed_noise": [entry for entry in log if "fixed_noise/all" in entry][-1],
    }
    file.write_text(json.dumps(result, indent=1) + "\n")


def main(options: LawWeightings) -> None:
    options.results.mkdir(parents=True, exist_ok=True)
    if options.table:
        show(options)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for seed in options.seeds:
        for arm in options.arms:
            run_arm(options, arm, seed)
            sys.stdout.flush()


def show(options: LawWeightings) -> None:
    """Arms over seeds: mean, spread, and the paired difference to `uniform` (same masks, noise, seeds)."""
    runs: dict[str, dict[int, dict]] = {}
    for file in sorted(options.results.glob(f"*_{options.steps}steps_seed*.json")):
        run = json.loads(file.read_text())
        runs.setdefault(run["arm"], {})[run["seed"]] = run
    # An image that was dropped in one run is left out everywhere.
    every = [{case["case"] for case in run["cases"]} for seeds in runs.values() for run in seeds.values()]
    shared = sorted(set.intersection(*every))
    title = f"{options.steps} steps; difference to uniform with 95 % interval over masks and seeds"
    table = Table(title=title)
    for column in ("arm", "seeds", "own mDice", "small lesions", "shuffled", "FD", "near copies"):
        table.add_column(column)
    for arm, seeds in runs.items():
        cells = [arm, str(len(seeds))]
        for column, largest in (("dice", 1.0), ("dice", SMALL), ("dice_shuffled", 1.0)):
            values = by_seed(seeds, shared, column, largest)
            means = 100 * values.mean(1)
            cell = f"{means.mean():.1f} ± {means.std():.1f}"
            common = sorted(seeds.keys() & runs.get("uniform", {}).keys())
            if arm != "uniform" and common:
                both = [{seed: runs[name][seed] for seed in common} for name in (arm, "uniform")]
                gain = 100 * (
                    by_seed(both[0], shared, column, largest) - by_seed(both[1], shared, column, largest)
                )
                low, high = interval(resampled_means(gain[..., None]))
                cell += f" ({gain.mean():+.1f} [{low:+.1f}, {high:+.1f}])"
            cells.append(cell)
        for name, against in (("FD-EfficientNetLite0", "train"), ("EfficientNetLite0", "near copies")):
            values = [measure(run, name, against) for run in seeds.values()]
            cells.append(f"{np.mean(values):.3g} ± {np.std(values):.2g}")
        table.add_row(*cells)
    Console(width=170).print(table)


def by_seed(seeds: dict[int, dict], shared: list[str], column: str, largest: float) -> np.ndarray:
    """A column of per_case.csv, of `shared` cases with lesions below a share of the image: (seeds, masks)."""
    rows = [{case["case"]: case for case in run["cases"]} for _, run in sorted(seeds.items())]
    chosen = [name for name in shared if float(rows[0][name]["lesion_ratio"]) < largest]
    return np.array([[float(cases[name][column]) for name in chosen] for cases in rows])


def measure(run: dict, name: str, against: str) -> float:
    """A measure of the synthetic images."""
    key = (name, "synthetic", against)
    return next(m["value"] for m in run["measures"] if (m["name"], m["images"], m["against"]) == key)


if __name__ == "__main__":
    main(tyro.cli(LawWeightings))
