"""Time and peak memory of `nnunet-order convert kits19` on one generated case of 512 x 512 x 600 int16.

    python benchmarks/convert_kits19.py --out benchmarks/results/convert_kits19.json

Every command runs in a process of its own; the case lies as KiTS19's files do, slices first.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import tyro

SHAPE = (600, 512, 512)
KINDS = {
    "volumes, linked": [],
    "volumes, written anew": [],
    "slices, PNG": ["--slices"],
    "slices, HU": ["--slices", "--keep-hu"],
    "slices, all 600, HU": ["--slices", "--keep-hu", "--which", "all"],
}


def main(out: Path, date: str, hardware: str = "2 cores, 24 GB") -> None:
    """Measure and write `out`; `date` and `hardware` go into it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generation = get_context("spawn").Process(target=generate, args=(root,))  # this process stays small
        generation.start()
        generation.join()
        results = [
            measure(
                name, root / ("odd" if "anew" in name else "plain"), root / f"Dataset{number:03d}", options
            )
            for number, (name, options) in enumerate(KINDS.items())
        ]
    voxels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    content = {
        "what": "one generated case of 512 x 512 x 600 voxels, 258 slices with foreground",
        "hardware": hardware,
        "date": date,
        "volume_mib": {"int16": voxels * 2 / 2**20, "float32": voxels * 4 / 2**20},
        "runs": results,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")


def generate(root: Path) -> None:
    """The case twice: as it should be, and 4D with a last axis of length 1, which is written anew."""
    import nibabel as nib
    import numpy as np

    rng = np.random.default_rng(0)
    image, label = np.empty(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    y, x = np.ogrid[-1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    body = (x / 0.8) ** 2 + (y / 0.6) ** 2 < 1
    for number, z in enumerate(np.linspace(-1, 1, SHAPE[0])):
        image[number] = np.rint(np.where(body, 36, -1000) + rng.normal(0, 15, body.shape))
        for side in (-0.35, 0.35):
            label[number][(z / 0.43) ** 2 + ((y - 0.2) / 0.16) ** 2 + ((x - side) / 0.13) ** 2 < 1] = 1
        label[number][(z / 0.1) ** 2 + ((y - 0.2) / 0.1) ** 2 + ((x - 0.45) / 0.1) ** 2 < 1] = 2
    affine = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    for name, values in (("plain", image), ("odd", image[..., None])):
        folder = root / name / "case_00000"
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(values, affine), folder / "imaging.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "segmentation.nii.gz")


def measure(name: str, source: Path, target: Path, options: list[str]) -> dict:
    """Run one command to its end, and watch the peak of its resident memory (Linux)."""
    program = str(Path(sys.executable).parent / "nnunet-order")
    arguments = ["convert", "kits19", "--source", str(source), "--out", str(target), *options]
    start, cpu, peak = time.perf_counter(), children_seconds(), 0
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.split("\n") if "VmHWM" in line)])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    seconds, cpu = time.perf_counter() - start, children_seconds() - cpu
    print(f"{name}: {seconds:.1f} s, {cpu:.1f} s of CPU, {peak / 1024:.0f} MiB")
    return {
        "name": name,
        "command": " ".join(["nnunet-order", "convert", "kits19", *options]),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(peak / 1024),
    }


def children_seconds() -> float:
    """CPU time of the processes that have ended, which other work on the machine does not lengthen much."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    tyro.cli(main)
