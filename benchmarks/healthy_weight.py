"""What should an image without a lesion weigh? Equation 7 is 0/0 there: 0, 0.5 and 1, trained and judged.

    python benchmarks/healthy_weight.py --kvasir KVASIR_SEG --work healthy --results RESULTS
    python benchmarks/healthy_weight.py --kvasir KVASIR_SEG --work healthy --results RESULTS --table

Each training image of Kvasir-SEG (train.txt) gives a square around its polyp and a square of the same side
without one, where there is one, so that half of the cases are healthy. The real commands make a base, a
judge and every arm. Only `law_synth.weighting.NOTHING_TO_BALANCE` differs between the arms `law-...`. In
the arm `ratio-before` healthy images have weight 1 in the ratio prior, as they once had in law-order. There
is one JSON file per arm and seed; one that exists is skipped.
"""

from __future__ import annotations

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
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dataset_conversion.images import read_binary_mask, read_rgb
from dataset_conversion.notes import Notes
from dataset_conversion.raw.dataset import find_dataset
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from nnunet_order.bootstrap import interval, resampled_means

NAME = "Dataset580_Healthy"
SIDE = 64  # px of the cases
DARK = 40  # mean grey level of the black border around the endoscope's view
PATCH_CONSTANT = "import law_synth.weighting as w; w.NOTHING_TO_BALANCE = {weight}; "
PATCH_PRIOR = (
    "import torch, law_synth.weighting as w; prior = w.ratio_prior; "
    "w.ratio_prior = lambda mask: torch.where(w.has_several(mask), prior(mask), 1.0); "
)
ARMS = {
    "law-0": ("law", PATCH_CONSTANT.format(weight=0.0)),
    "law-0.5": ("law", PATCH_CONSTANT.format(weight=0.5)),
    "law-1": ("law", PATCH_CONSTANT.format(weight=1.0)),
    "ratio": ("ratio", ""),
    "ratio-before": ("ratio", PATCH_PRIOR),
}


@dataclass(frozen=True)
class HealthyWeight:
    """Make what is missing, run the arms that have no result, or show their table."""

    kvasir: Path
    """Kvasir-SEG: images, masks, train.txt."""
    work: Path
    """Folder for the data set, base, judge and runs."""
    results: Path
    """Folder of the JSON files."""
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 300
    """Training images to cut squares from."""
    steps: int = 300
    samples: int = 240
    """Synthetic images per arm and seed, half of them healthy."""
    table: bool = False
    """Show the table, run nothing."""


def main(options: HealthyWeight) -> None:
    if options.table:
        show(options)
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str((options.work / f"nnUNet_{part}").resolve())
        (options.work / f"nnUNet_{part}").mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    dataset = options.work / "nnUNet_raw" / NAME
    if not dataset.exists():
        write_squares(options, dataset)
    base, judge = options.work / "base", options.work / "nnUNet_results" / NAME
    judge /= "nnUNetTrainerMKUNetWide_30epochs__nnUNetPlans__2d"
    steps = "--vae-steps 500 --unet-steps 1500 --device cpu"
    run(f"law-synth init-base --from 580 --fold all --out {base} {steps}")
    if not (judge / "fold_all" / "checkpoint_final.pth").is_file():
        run("nnUNetv2_plan_and_preprocess -d 580 -c 2d -np 1 -npfp 1", nnUNet_n_proc_DA="1")
        train = "nnUNetv2_train 580 2d all -tr nnUNetTrainerMKUNetWide_30epochs -device cpu"
        run(train, nnUNet_n_proc_DA="0", NNUNET_ORDER_SEED="0")
    for seed in options.seeds:
        for arm in options.arms:
            run_arm(options, arm, seed, base, judge)


def run(command: str, patch: str = "", **environment: str) -> None:
    """A command of this environment; `patch`: what law-synth does first."""
    words = command.split()
    if patch:
        words = [sys.executable, "-c", patch + "from law_synth.cli import main; main()", *words[1:]]
    subprocess.run(words, check=True, env=os.environ | environment)


def write_squares(options: HealthyWeight, out: Path) -> None:
    """Two squares of each image: around the polyp, and beside it inside the endoscope's view."""
    notes, generator = Notes(), np.random.default_rng(0)
    stems = sorted((options.kvasir / "train.txt").read_text().split())[: options.images]
    with RawDatasetWriter(out, RGB, {"background": 0, "polyp": 1}) as writer:
        groups = {}
        for stem in track(stems, "cutting squares"):
            image = read_rgb(options.kvasir / "images" / f"{stem}.jpg", notes)
            mask = read_binary_mask(options.kvasir / "masks" / f"{stem}.png", notes)
            found = {kind: square(image, mask, kind, generator) for kind in ("lesion", "healthy")}
            for kind, corner in found.items():
                if corner is None:
                    continue
                y, x, side = corner
                box = (x, y, x + side, y + side)
                small = Image.fromarray(image).crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                label = Image.fromarray(mask).crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                writer.add_training_case(f"{stem}_{kind}", np.asarray(small), np.asarray(label))
                groups[f"{stem}_{kind}"] = stem
        writer.set_groups(groups)


def square(
    image: np.ndarray, mask: np.ndarray, kind: str, generator: np.random.Generator
) -> tuple[int, int, int] | None:
    """(y, x, side) of the first of 200 drawn squares, half the shorter side long, that fits; else None."""
    height, width = mask.shape
    side = min(height, width) // 2
    for _ in range(200):
        y, x = int(generator.integers(height - side + 1)), int(generator.integers(width - side + 1))
        inside = mask[y : y + side, x : x + side]
        if image[y : y + side, x : x + side].mean() < DARK:
            continue
        if kind == "healthy" and not inside.any():
            return y, x, side
        if kind == "lesion" and 0.01 <= inside.mean() <= 0.6 and inside.sum() >= 0.5 * mask.sum():
            return y, x, side
    return None


def run_arm(options: HealthyWeight, arm: str, seed: int, base: Path, judge: Path) -> None:
    file = options.results / f"{arm}_seed{seed}.json"
    if file.exists():
        return
    weighting, patch = ARMS[arm]
    trained, data = (
        options.work / "runs" / f"{arm}_{seed}",
        options.work / f"{arm}_{seed}" / "Dataset599_Synthetic",
    )
    start = time.perf_counter()
    train = f"""law-synth train --dataset 580 --fold all --base {base} --out {trained} --weighting {weighting}
        --preset light --seed {seed} --max-steps {options.steps} --guidance-scale 1 --batch-size 16
        --gradient-accumulation 1 --learning-rate 3e-4 --monitor-cases 48 --sample-every {options.steps}
        --device cpu"""
    generate = f"""law-synth generate --trained-run {trained} --out {data} --samples {options.samples}
        --seed 0 --guidance-scale 1 --max-similarity 1 --device cpu"""
    run(train, patch)
    run(generate)
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    result = {
        "arm": arm,
        "seed": seed,
        "commands": [" ".join(command.split()) for command in (train, generate)],
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "diffusers", "nnunetv2")},
        "seconds": round(time.perf_counter() - start),
        "fixed_noise": next(entry for entry in reversed(log) if "fixed_noise/all" in entry),
        **judged(data, judge),
    }
    file.write_text(json.dumps(result, indent=1) + "\n")


def judged(data: Path, judge: Path) -> dict:
    """Distance to the real images of each kind, and what the judge finds in every synthetic image."""
    from law_synth.evaluation.distances import frechet_distance
    from law_synth.judging.features import efficientnet_extractor, extract
    from law_synth.judging.segmenter import Segmenter

    segmenter, extractor = Segmenter(judge), efficientnet_extractor("cpu", 32)
    synthetic, real = find_dataset(data), find_dataset("580")
    pixels: dict[tuple[str, bool], list[np.ndarray]] = {}
    cases = []
    for name, dataset in (("synthetic", synthetic), ("real", real)):
        for case in track(dataset.training_cases, f"judging {name} images"):
            image, label = dataset.read_case(case)
            truth = label[0] > 0
            pixels.setdefault((name, bool(truth.any())), []).append(
                image[:, 0].transpose(1, 2, 0).astype(np.uint8)
            )
            found = segmenter.predict(image, (999, 1, 1))[0] > 0
            both = int(truth.sum() + found.sum())
            dice = 2 * int((truth & found).sum()) / both if both else None
            cases.append(
                {
                    "images": name,
                    "lesion": bool(truth.any()),
                    "ratio": round(float(truth.mean()), 4),
                    "dice": dice,
                    "found": float(found.mean()),
                }
            )
    distance = {}
    for kind, lesion in (("lesion", True), ("healthy", False)):
        features = [extract(extractor, [pixels[name, lesion]], False)[0] for name in ("synthetic", "real")]
        distance[kind] = frechet_distance(*features)
    return {"fd": distance, "cases": cases}


def show(options: HealthyWeight) -> None:
    """Arms over seeds, and paired differences to law-1 (same masks and noise; 95 % over masks and seeds)."""
    runs: dict[str, list[dict]] = {}
    for file in sorted(options.results.glob("*_seed*.json")):
        runs.setdefault(json.loads(file.read_text())["arm"], []).append(json.loads(file.read_text()))
    table = Table(title="mean over seeds; difference to law-1 with 95 % interval over masks and seeds")
    found = ("found in healthy, % of pixels", "healthy with a find, %")
    losses = ("noise loss lesion", "background")
    for name in ("arm", "seeds", "own mDice, lesions", *found, "FD lesions", "FD healthy", *losses):
        table.add_column(name)
    for arm, seeds in runs.items():
        cells = [arm, str(len(seeds))]
        for lesion, value in ((True, "dice"), (False, "found"), (False, "any")):
            values = column(seeds, lesion, value)
            cell = f"{100 * values.mean():.2f}"
            reference = [
                run for run in runs.get("law-1", []) if run["seed"] in {one["seed"] for one in seeds}
            ]
            if arm != "law-1" and len(reference) == len(seeds):
                gain = 100 * (values - column(reference, lesion, value))
                low, high = interval(resampled_means(gain[..., None]))
                cell += f" ({gain.mean():+.2f} [{low:+.2f}, {high:+.2f}])"
            cells.append(cell)
        for kind in ("lesion", "healthy"):
            cells.append(f"{np.mean([run['fd'][kind] for run in seeds]):.1f}")
        for key in ("fixed_noise/lesion", "fixed_noise/background"):
            cells.append(f"{np.mean([run['fixed_noise'][key] for run in seeds]):.4f}")
        table.add_row(*cells)
    Console(width=200).print(table)


def column(seeds: list[dict], lesion: bool, value: str) -> np.ndarray:
    """(seeds, masks) of the synthetic images of one kind."""
    rows = []
    for run in sorted(seeds, key=lambda run: run["seed"]):
        cases = [case for case in run["cases"] if case["images"] == "synthetic" and case["lesion"] == lesion]
        rows.append([float(case["found"] > 0) if value == "any" else case[value] or 0.0 for case in cases])
    return np.array(rows)


if __name__ == "__main__":
    main(tyro.cli(HealthyWeight))
