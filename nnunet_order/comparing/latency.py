"""How long the trained networks of a comparison take for one image: a stage of its own, and its results."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dataset_conversion.system.errors import UserError
from nnunet_order.benchmark import read_times
from nnunet_order.stages.stage import Stage

LATENCY = "latency.json"
ROUNDS = 30
LATENCY_SIDE = 256  # px


def latency_stage(models: Iterable[str], after: Iterable[str]) -> Stage:
    """`nnunet-order benchmark` of the networks in these results folders: one image, one thread of the CPU."""
    size = f"--size {LATENCY_SIDE} --batch-size 1 --threads 1 --device cpu"
    rounds = f"--no-training --steps {ROUNDS} --warmup 3"
    command = f"nnunet-order benchmark --models {shlex.join(models)} {size} {rounds} --json {LATENCY}"
    return Stage("latency", (command,), (LATENCY,), tuple(after))


def read_latencies(out: Path, models: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Trainer -> its columns of the table: median and quartiles of ms per image.

    `models`: trainer -> results folder, below `out`. UserError: a file that the stage did not write.
    """
    remedy = "remove it, and give the same command again"
    times = read_times(out / LATENCY, remedy)
    if missing := [model for model in models.values() if not times.get(model)]:
        raise UserError(f"{out / LATENCY}: found no times of {missing[0]}, expected some; {remedy}")
    return {trainer: _columns(times[model]) for trainer, model in models.items()}


def _columns(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(1000 * np.array(seconds), [50, 25, 75])
    names = ("latency_ms", "latency_ms_low", "latency_ms_high")
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}
