"""What random kill -9s cost a small `law-synth experiment`, and whether it ends in the same files.

    python benchmarks/kill_experiment.py --out benchmarks/results/kill_experiment.json

The experiment runs once undisturbed. Then it begins anew in a second folder, is killed at random moments and
started again each time, and after the last kill runs to its end. Compared byte for byte: the tables, the
synthetic images, labels and manifests, the predictions.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import tyro

from dataset_conversion.phantom import ConvertPhantom, convert_phantom
from dataset_conversion.system.provenance import git_commit, machine
from nnunet_order.stages.stage_record import versions

# Every kind of stage: a trained base, two rounds with mining, a filter, a numbered fold, two segmenters.
CONFIG = """
dataset = "Dataset940_Phantom"
arms = ["real", "uniform", "law"]
segmenters = ["nnUNetTrainerORDER", "nnUNetTrainerMKUNet"]
folds = [0]
seeds = [3]
rounds = 2
trainer_options = "epochs=2 iterations_per_epoch=4 samples_per_step=2"
device = "cpu"
[init_base]
image_size = 32
vae_width = 8
unet_width = 16
vae_steps = 40
unet_steps = 40
checkpoint_every = 10
[train]
preset = "light"
max_steps = 20
save_every = 5
batch_size = 2
gradient_accumulation = 1
[generate]
steps = 4
max_similarity = 1.0
min_agreement = 0.001
"""
COMPARED = ("results/*.csv", "nnUNet_raw/Dataset1*/*/*.png", "nnUNet_raw/Dataset1*/synthesis.jsonl")
PREDICTIONS = "nnUNet_results/*/*/*/fold_0/validation/*.png"


def main(out: Path, kills: int = 20, mean_gap: float = 30.0, seed: int = 0, jobs: int = 2) -> None:
    """Run, kill and compare; write `out`. The kills are a Poisson process of `mean_gap` seconds."""
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder, "undisturbed"), Path(folder, "killed")
        for root in (undisturbed, disturbed):
            convert_phantom(ConvertPhantom(out=root / "Dataset940_Phantom", cases=12, test_cases=2, size=64))
            (root / "small.toml").write_text(CONFIG)
        seconds = run(undisturbed, jobs)
        whole, moments = kill_and_run(disturbed, jobs, kills, random.Random(seed), mean_gap)
        expected, found = digests(undisturbed / "small"), digests(disturbed / "small")
        attempts = [record["attempts"] for record in records(disturbed / "small").values()]
        content = {
            "what": "a small experiment killed at random moments (SIGKILL to law-synth experiment), against "
            "the same undisturbed; both with --jobs",
            "command": f"python benchmarks/kill_experiment.py --kills {kills} --mean-gap {mean_gap:g} "
            f"--seed {seed} --jobs {jobs}",
            "machine": machine(),
            "versions": versions(),
            "commit": git_commit(),
            "stages": len(attempts),
            "seconds_undisturbed": round(seconds, 1),
            "seconds_killed": round(whole, 1),
            "kills": moments,
            "attempts_of_stages": {str(number): attempts.count(number) for number in sorted({*attempts})},
            "files_compared": len(expected),
            "files_that_differ": sorted(
                name for name in {*expected, *found} if expected.get(name) != found.get(name)
            ),
        }
    out.write_text(json.dumps(content, indent=1) + "\n")


def start(root: Path, jobs: int) -> subprocess.Popen:
    program = str(Path(sys.executable).parent / "law-synth")
    return subprocess.Popen(
        [program, "experiment", "small.toml", "--jobs", str(jobs)],
        cwd=root,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def run(root: Path, jobs: int) -> float:
    """Run to the end; seconds."""
    began = time.monotonic()
    code = start(root, jobs).wait()
    if code:
        raise RuntimeError(f"the experiment ended with exit code {code}")
    return time.monotonic() - began


def kill_and_run(
    root: Path, jobs: int, kills: int, generator: random.Random, mean_gap: float
) -> tuple[float, list[dict]]:
    """Seconds from the first start to the end, and what each kill met; fewer kills where it ends before."""
    began, moments = time.monotonic(), []
    while len(moments) < kills:
        process = start(root, jobs)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.expovariate(1 / mean_gap))
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        unfinished = [path.name.split(".")[0] for path in (root / "small/stages").glob("*.begun.json")]
        moment = {"second": round(time.monotonic() - began, 1), "done": len(records(root / "small"))}
        moments.append(moment | {"unfinished": sorted(unfinished)})
        sys.stderr.write(f"kill {len(moments)}: {moments[-1]}\n")
    run(root, jobs)
    return time.monotonic() - began, moments


def records(folder: Path) -> dict[str, dict]:
    """Records of the finished stages."""
    paths = [path for path in (folder / "stages").glob("*.json") if ".begun" not in path.name]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file that is compared."""
    paths = [path for pattern in (*COMPARED, PREDICTIONS) for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    tyro.cli(main)
