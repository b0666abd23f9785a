"""What a LAW step costs over a uniform one, and a teacher over none: time in interleaved rounds, peak memory.

    python benchmarks/law_step.py --json benchmarks/results/law_step_cpu.json

Random weights; a UNet of 4.9 M parameters (the size that init-base trains) on latents of 16 x 16. Each round
runs one step of every variant in a new order, so that a noisy moment hits all alike; the ratio is the median
of the per-round ratios. Peak memory comes from a process of its own per variant.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from diffusers import ControlNetModel
from rich.progress import track
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from law_synth.base.tiny import new_scheduler, new_unet
from law_synth.denoiser import StudentTeacher
from law_synth.objective import Batch, TrainingObjective, total_loss
from law_synth.weighting import LearnableAdaptiveWeighter
from law_synth.weightings import WEIGHTINGS

VARIANTS = {  # name -> weighting, teacher
    "uniform": ("uniform", False),
    "ratio-clamped": ("ratio-clamped", False),
    "law": ("law", False),
    "difficulty": ("difficulty", False),
    "uniform + teacher": ("uniform", True),
    "law + teacher": ("law", True),
}


@dataclass(frozen=True)
class LawStep:
    """Time and memory of training steps."""

    steps: int = 20
    """Timed rounds; 0: only count floating-point operations."""
    batch_size: int = 16
    channels: tuple[int, ...] = (48, 96, 144)
    """Of the UNet; SD 1.5 has 320 640 1280 1280."""
    layers: int = 1
    text_width: int = 32
    latent: int = 16
    """Side of the latents."""
    factor: int = 4
    """Pixels per latent cell; SD 1.5 has 8."""
    device: str = "cpu"
    threads: int = 1
    json: Path | None = None


class Step:
    """One training step of a variant, ready to run again and again."""

    def __init__(self, options: LawStep, name: str):
        weighting, teaches = VARIANTS[name]
        torch.manual_seed(0)
        unet = new_unet(options.channels, options.layers, options.text_width)
        factor, hint = options.factor, (16, 32, 96, 256)[: options.factor.bit_length()]
        make = lambda: ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=hint)  # noqa: E731
        networks = StudentTeacher(unet, make(), make() if teaches else None)
        weighter = (
            LearnableAdaptiveWeighter(weighting=weighting) if WEIGHTINGS[weighting].is_learned else None
        )
        alphas = new_scheduler().alphas_cumprod
        self.objective = TrainingObjective(networks, alphas, weighting=weighting, weighter=weighter)
        if options.device != "cpu":  # fake tensors cannot be moved
            self.objective.to(options.device)
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-5)
        count, side = options.batch_size, options.latent
        mask = torch.zeros(count, 1, side, side)
        mask[:, :, : side // 3, : side // 3] = 1
        batch = Batch(
            latents=torch.randn(count, 4, side, side),
            noise=torch.randn(count, 4, side, side),
            timestep=torch.randint(1000, (count,)),
            text=torch.randn(count, 77, options.text_width),
            mask=mask,
            condition=mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3).expand(-1, 3, -1, -1),
            image=torch.rand(count, 3, side * factor, side * factor) if teaches else None,
        )
        self.batch = Batch(*(None if part is None else part.to(options.device) for part in batch))

    def __call__(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        terms = self.objective(self.batch).terms
        loss = total_loss(terms, dict.fromkeys(terms, 1.0))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return time.perf_counter() - start


def count_flops(options: LawStep, name: str) -> int:
    """Floating-point operations of a step's forward and backward pass, counted without running it."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        step = Step(replace(options, device="cpu"), name)
        terms = step.objective(step.batch).terms
        total_loss(terms, dict.fromkeys(terms, 1.0)).backward()
    return counter.get_total_flops()


def peak_memory(options: LawStep, name: str) -> float:
    """MiB at the peak of three steps: of the device's allocator, or of the whole process on a CPU."""
    torch.set_num_threads(options.threads)
    step = Step(options, name)
    for _ in range(3):
        step()
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak is inherited from the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main(options: LawStep) -> None:
    torch.set_num_threads(options.threads)
    flops = {name: count_flops(options, name) for name in VARIANTS}
    if options.steps == 0:
        for name, count in flops.items():
            print(f"{name}: {count / 1e9:.1f} GFLOPs, {count / flops['uniform']:.3f} of uniform")
        return
    steps = {name: Step(options, name) for name in VARIANTS}
    times = {name: [] for name in VARIANTS}
    for step in steps.values():
        step()
    for _ in track(range(options.steps), "timing"):
        for name in random.sample(list(VARIANTS), len(VARIANTS)):
            times[name].append(steps[name]())
    memory = {}
    for name in VARIANTS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[name] = pool.submit(peak_memory, options, name).result()
    rows = {}
    for name in VARIANTS:
        base = "uniform" if name != "law + teacher" else "uniform + teacher"
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        rows[name] = {
            "seconds_per_step": round(statistics.median(times[name]), 4),
            "compared_with": base,
            "GFLOPs": round(flops[name] / 1e9, 2),
            "flops_ratio": round(flops[name] / flops[base], 4),
            "time_ratio": round(statistics.median(ratios), 4),
            "fastest_ratio": round(min(times[name]) / min(times[base]), 4),
            "peak_MiB": round(memory[name], 1),
            "memory_ratio": round(memory[name] / memory[base], 4),
        }
        print(name, rows[name])
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "command": sys.argv,
        "commit": commit,
        "options": {**asdict(options), "json": None},
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    if options.json:
        options.json.write_text(json.dumps({**about, "variants": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(LawStep))
