"""Should ORDER have a 3D version? Cost, and Dice on volumes whose tumour only averaging can tell from noise.

    python benchmarks/order_3d.py --out benchmarks/results/order_3d.json

Compares ORDER on slices with an experimental ORDER of 3D convolutions (all kernels cubes, attention on the
same two skips, same widths) and, for the cost, with nnU-Net's default 3D network. Both ORDERs see the same
number of voxels in the same number of steps. Times are CPU seconds of one thread, which other work on the
machine changes little. Costs and runs that the file already holds are not repeated.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_order.benchmark import resident_peak
from nnunet_order.complexity import parameters
from nnunet_order.networks import ORDER

CLASSES = 3  # background, organ, tumour
SHAPE = (32, 64, 64)
NAMES = ("ORDER on slices", "ORDER in 3D", "nnU-Net 3d_fullres")


@dataclass(frozen=True)
class Study:
    """Measure cost, then train both ORDERs with every seed."""

    out: Path
    """JSON file of the results."""
    seeds: tuple[int, ...] = (0, 1, 2)
    training_volumes: int = 24
    test_volumes: int = 24
    steps: int = 480
    learning_rate: float = 3e-3
    """Of AdamW, cosine annealing to zero; at 1e-2 the 3D network stays at the background."""
    rounds: int = 3
    """Timed steps; the median counts."""


def inflate(module: nn.Module) -> None:
    """Replace the 2D convolutions and batch norms inside `module` by 3D ones of the same size, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            options = {"padding": child.padding[0], "groups": child.groups, "bias": child.bias is not None}
            convolution = nn.Conv3d(child.in_channels, child.out_channels, child.kernel_size[0], **options)
            nn.init.normal_(convolution.weight, std=child.weight.std().item())
            setattr(module, name, convolution)
        elif isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.BatchNorm3d(child.num_features))
        else:
            inflate(child)


class ORDER3D(ORDER):
    """ORDER with 3D convolutions: x (B, input_channels, Z, Y, X) -> logits (B, num_classes, Z, Y, X)."""

    def __init__(self, input_channels: int, num_classes: int, **options):
        super().__init__(input_channels, num_classes, **options)
        inflate(self.encoder)
        inflate(self.decoder.blocks)
        inflate(self.decoder.spatial_attention)
        (head,) = self.decoder.seg_layers
        self.decoder.seg_layers[0] = nn.Conv3d(head.in_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes, skips = [x.shape[2:]], []
        for block in self.encoder:
            x = F.max_pool3d(block(x), 2, ceil_mode=True)
            sizes.append(x.shape[2:])
            skips.append(x)
        for stage, block in enumerate(self.decoder.blocks):
            # Pooling and attention do not know which axis is which: (Z, Y) as one serves them.
            x = x * self.decoder.channel_attention[stage](x.flatten(2, 3))[..., None]
            x = block(x * self.decoder.spatial_attention(x))
            x = F.relu(F.interpolate(x, size=sizes[-2 - stage], mode="trilinear"))
            if stage < len(self.decoder.skips):
                skip = skips[-2 - stage].flatten(2, 3)
                x = self.decoder.skips[stage](x.flatten(2, 3), skip).unflatten(2, x.shape[2:4])
        return self.decoder.seg_layers[0](x)


class Slices(nn.Module):
    """A 2D network on the slices of a volume: (B, C, Z, Y, X) -> (B, classes, Z, Y, X)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x.transpose(1, 2).flatten(0, 1))  # (B Z, classes, Y, X)
        return logits.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def planned_unet_3d(size: int) -> nn.Module:
    """nnU-Net's default 3D PlainConvUNet for isotropic patches of `size`, as its planner lays it out."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props((1, 1, 1), (size,) * 3, 4, 999999)
    stages = len(strides)
    return PlainConvUNet(
        1,
        stages,
        [min(320, 32 * 2**stage) for stage in range(stages)],
        nn.Conv3d,
        kernels,
        strides,
        [2] * stages,
        CLASSES,
        [2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def build(name: str, size: int = 64, **options) -> nn.Module:
    """A network on volumes; `size` matters to nnU-Net's only."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "ORDER on slices": lambda: Slices(ORDER(1, CLASSES, **options)),
        "ORDER in 3D": lambda: ORDER3D(1, CLASSES, **options),
        "nnU-Net 3d_fullres": lambda: planned_unet_3d(size),
    }
    return builders[name]()


def gflops(name: str, size: int) -> float:
    """2 x multiply-adds of one size^3 patch forward, in 1e9, attention on the materialized path."""
    options = {} if name.startswith("nnU-Net") else {"attention_path": "materialized"}
    network = build(name, size, **options).eval()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        network(torch.zeros(1, 1, size, size, size))
    return counter.get_total_flops() / 1e9


def loss_of(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy + soft Dice of the two foreground classes over the batch."""
    probability = logits.softmax(1).transpose(0, 1).flatten(1)[1:]  # (2, voxels)
    target = torch.stack([(truth == label).flatten().float() for label in range(1, CLASSES)])
    overlap = 2 * (probability * target).sum(1) / (probability.sum(1) + target.sum(1)).clamp(min=1e-6)
    return F.cross_entropy(logits, truth) + 1 - overlap.mean()


def step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, truth: Tensor) -> float:
    """One training step; -> its loss."""
    loss = loss_of(network(image), truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    return loss.item()


def cost(name: str, size: int, training: bool, rounds: int) -> dict[str, float]:
    """CPU seconds of a step (or a forward pass in inference) on one size^3 patch, and peak MiB beyond it.

    To be called in a fresh process.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build("nnU-Net 3d_fullres", 32)  # loads the libraries, so that they do not count
    image = torch.randn(1, 1, size, size, size)
    truth = torch.randint(0, CLASSES, (1, size, size, size))
    before = resident_peak()
    network = build(name, size).train(training)
    optimizer = torch.optim.AdamW(network.parameters())
    seconds = []
    for _ in range(1 + rounds):
        start = time.process_time()
        if training:
            step(network, optimizer, image, truth)
        else:
            with torch.inference_mode():
                network(image)
        seconds.append(time.process_time() - start)
    return {
        "cpu_seconds": round(statistics.median(seconds[1:]), 3),
        "peak_mib": round(resident_peak() - before),
    }


def costs(rounds: int) -> list[dict]:
    """Parameters, GFLOPs, time and memory of every network at 64^3 (training) and 128^3 (forward)."""
    context = multiprocessing.get_context("spawn")
    jobs = [(name, size, training) for size, training in ((64, True), (128, False)) for name in NAMES]
    rows = []
    for name, size, training in track(jobs, "cost"):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            measured = pool.submit(cost, name, size, training, rounds if training else 1).result()
        rows.append(
            {
                "network": name,
                "patch": [size] * 3,
                "pass": "training step" if training else "forward",
                "parameters": parameters(build(name, size)),
                "gflops_forward": round(gflops(name, size), 2),
                **measured,
            }
        )
        print(rows[-1], flush=True)
    return rows


def phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like volume, normalised, and its labels, (Z, Y, X) each.

    An ellipsoid organ (80 HU above its surroundings) with a tumour 30 HU below it, in noise of 40 HU: a voxel
    tells little, the mean of a neighbourhood tells all. One to three vessels as bright as the organ are none.
    """
    grid = np.stack(np.mgrid[:32, :64, :64]).astype(float)

    def ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1

    centre = rng.uniform([12, 24, 24], [20, 40, 40])
    radii = rng.uniform([6, 11, 11], [11, 18, 18])
    organ = ellipsoid(centre, radii)
    tumour_radii = radii * rng.uniform(0.3, 0.55, 3)
    direction = rng.normal(size=3)
    offset = direction / np.linalg.norm(direction) * (radii - tumour_radii) * rng.uniform(0.2, 0.8)
    tumour = ellipsoid(centre + offset, tumour_radii) & organ
    density = 80.0 * organ - 30.0 * tumour
    for _ in range(rng.integers(1, 4)):
        y, x = rng.uniform(6, 58, 2)
        vessel = (np.hypot(grid[1] - y, grid[2] - x) < rng.uniform(2, 4)) & ~organ
        density[vessel] = 80
    density += rng.normal(0, 40, SHAPE)
    return ((density - 20) / 50).astype(np.float32), (organ.astype(np.int64) + tumour)


def volumes(seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, Z, Y, X) and labels (N, Z, Y, X)."""
    pairs = [phantom(np.random.default_rng([seed, index])) for index in range(number)]
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return images[:, None], labels


def flipped(image: Tensor, truth: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mirrored along axes counted from the end."""
    return image.flip(axes), truth.flip(axes)


def draw(name: str, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One volume's voxels: a whole volume, or as many slices from all volumes, randomly mirrored."""
    axes = [axis for axis in (-3, -2, -1) if torch.rand((), generator=generator) < 0.5]
    if name == "ORDER in 3D":
        index = int(torch.randint(len(images), (), generator=generator))
        return flipped(images[index, None], labels[index, None], axes)
    depth = images.shape[2]
    volume = torch.randint(len(images), (depth,), generator=generator)
    height = torch.randint(depth, (depth,), generator=generator)
    image = images[volume, :, height].transpose(0, 1)[None]  # slices take the place of Z
    return flipped(image, labels[volume, height][None], axes)


@torch.no_grad()
def dice(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Dice per volume in percent."""
    network.eval()
    scores: dict[str, list[float]] = {"organ": [], "tumour": []}
    for image, truth in zip(images, labels, strict=True):
        found = network(image[None]).argmax(1)[0]
        for label, values in enumerate(scores.values(), start=1):
            overlap, total = ((found == label) & (truth == label)).sum(), (found == label).sum()
            values.append(round(float(200 * overlap / (total + (truth == label).sum())), 2))
    return scores


def train(study: Study, name: str, seed: int) -> dict:
    """One run -> its results."""
    images, labels = volumes(seed, study.training_volumes)
    torch.manual_seed(seed)
    network = build(name).train()
    optimizer = torch.optim.AdamW(network.parameters(), study.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, study.steps)
    generator = torch.Generator().manual_seed(seed)
    start, losses = time.process_time(), []
    for _ in track(range(study.steps), f"{name}, seed {seed}"):
        losses.append(step(network, optimizer, *draw(name, images, labels, generator)))
        schedule.step()
    seconds = time.process_time() - start
    scores = dice(network, *volumes(1000, study.test_volumes))  # the same for all
    return {
        "network": name,
        "seed": seed,
        "learning_rate": study.learning_rate,
        "steps": study.steps,
        "mDice": {label: round(float(np.mean(values)), 2) for label, values in scores.items()},
        "dice_per_volume": scores,
        "loss_last_20": round(float(np.mean(losses[-20:])), 4),
        "cpu_seconds": round(seconds, 1),
    }


def main(study: Study) -> None:
    torch.set_num_threads(1)
    content = json.loads(study.out.read_text()) if study.out.exists() else {"runs": []}
    content |= {
        "command": ["python", *sys.argv],
        "date": time.strftime("%Y-%m-%d"),
        "hardware": "2 cores, 24 GB; one thread used",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "volumes": {"training": study.training_volumes, "test": study.test_volumes, "shape": SHAPE},
        "voxels_per_step": int(np.prod(SHAPE)),
    }
    if "cost" not in content:
        content["cost"] = costs(study.rounds)
    done = {(r["network"], r["seed"], r["learning_rate"], r["steps"]) for r in content["runs"]}
    for seed, name in product(study.seeds, NAMES[:2]):
        if (name, seed, study.learning_rate, study.steps) in done:
            continue
        content["runs"].append(train(study, name, seed))
        print({key: content["runs"][-1][key] for key in ("network", "seed", "mDice", "cpu_seconds")})
        study.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Study))
