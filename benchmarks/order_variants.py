"""Why does ORDER not beat its backbone? Many small trainings of many variants, outside nnU-Net.

    python benchmarks/order_variants.py --data nnUNet_raw/Dataset500_Polyps --out benchmarks/results \
        --variant ORDER MKUNet --recipe ademamix_1e-3 --seeds 0 1 2 --size 128 --epochs 20

Images are shrunk to size x size and kept in memory. A fifth of the training cases is held out for every
choice between variants and recipes; the test sets are reported and never chosen on. One JSON file per run; a
run whose file exists is skipped, so that a killed study goes on where it was.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from pytorch_optimizer import AdEMAMix
from rich.progress import track
from torch import Tensor, nn
from variants import VARIANTS

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import read_dataset
from nnunet_order.attention import BidirectionalSkipAttention, scaled_similarity

RECIPES = {  # optimizer, learning rate
    "ademamix_1e-4": ("AdEMAMix", 1e-4),  # the paper's
    "ademamix_1e-3": ("AdEMAMix", 1e-3),
    "ademamix_5e-3": ("AdEMAMix", 5e-3),
    "ademamix_1e-2": ("AdEMAMix", 1e-2),
    "adamw_1e-3": ("AdamW", 1e-3),
    "adamw_5e-3": ("AdamW", 5e-3),
    "adamw_1e-2": ("AdamW", 1e-2),
}


@dataclass(frozen=True)
class Study:
    """Train every variant with every seed."""

    data: Path
    """nnU-Net raw folder with imagesTr, labelsTr, imagesTs, labelsTs and test_sets.json."""
    out: Path
    """Folder of the results, one JSON file per run."""
    variant: tuple[str, ...] = ("MKUNet", "additive", "ORDER")
    """Names in benchmarks/variants.py."""
    recipe: str = "ademamix_1e-3"
    """A name in RECIPES."""
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 128
    """Side of the images in pixels."""
    epochs: int = 20
    batch_size: int = 16
    augmentation: bool = True
    """Flips, rotations and zoom; a run without them has "plain" in its file's name."""
    device: str = "cpu"
    threads: int = 1


def load_cases(cases: list[Case], size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Case -> image (3, size, size), z-scored per channel as nnU-Net does, and mask (1, size, size)."""
    loaded = {}
    for case in track(cases, "reading images"):
        image = Image.open(case.images[0]).convert("RGB").resize((size, size), Image.Resampling.BOX)
        mask = np.asarray(Image.open(case.label).resize((size, size), Image.Resampling.NEAREST)) > 0
        pixels = np.asarray(image, np.float32)
        pixels = (pixels - pixels.mean((0, 1))) / pixels.std((0, 1)).clip(1e-6)
        loaded[case.id] = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask)[None].float()
    return loaded


def augment(image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips, any rotation, zoom 0.7-1.4 per image (the paper's "random flips/rotations", nnU-Net's zoom)."""
    batch = len(image)
    angle = (torch.rand(batch, generator=generator) * 2 - 1) * math.pi
    zoom = torch.exp(torch.rand(batch, generator=generator) * math.log(2) + math.log(0.7))
    flip = torch.randint(0, 2, (batch,), generator=generator) * 2 - 1
    cosine, sine, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros(batch)
    rows = [torch.stack([cosine * flip, -sine, zero], 1), torch.stack([sine * flip, cosine, zero], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False).to(image.device)
    image = F.grid_sample(image, grid, align_corners=False)
    return image, F.grid_sample(mask, grid, mode="nearest", align_corners=False)


def bce_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Equation 18, Dice over the batch as nnU-Net's 2D configuration takes it."""
    probability = logits.sigmoid()
    dice = (2 * (probability * mask).sum() + 1e-5) / (probability.sum() + mask.sum() + 1e-5)
    return F.binary_cross_entropy_with_logits(logits, mask) + 1 - dice


@torch.no_grad()
def mean_dice(
    network: nn.Module, cases: list[tuple[Tensor, Tensor]], device: str, evaluation: bool = True
) -> list[float]:
    """Foreground Dice per image in percent, with running (or else batch) statistics in the batch norms."""
    network.train(not evaluation)
    scores = []
    for start in range(0, len(cases), 32):
        image = torch.stack([case[0] for case in cases[start : start + 32]]).to(device)
        mask = torch.stack([case[1] for case in cases[start : start + 32]]).to(device)
        found = (network(image) > 0).float()
        overlap, total = (found * mask).sum((1, 2, 3)), found.sum((1, 2, 3)) + mask.sum((1, 2, 3))
        scores += (200 * overlap / total).tolist()
    return scores


@torch.no_grad()
def diagnose(network: nn.Module, cases: list[tuple[Tensor, Tensor]], device: str) -> list[dict[str, float]]:
    """Per attentive skip, deepest first, on 64 held-out images: is the attention alive?

    gate: mean confidence and its standard deviation over images; entropy: of softmax(S) and softmax(S^T) as a
    share of the uniform distribution's (1 = global average pooling); update: norm of c * delta over norm of
    d, e.
    """
    found = []

    def look(
        module: BidirectionalSkipAttention, inputs: tuple[Tensor, Tensor], outputs: tuple[Tensor, Tensor]
    ):
        query, key, _, _ = module.tokens(*inputs)
        similarity = scaled_similarity(query, key)
        gate = module.gate(*inputs)
        row = {"gate": gate.mean(), "gate_std": gate.std()}
        for name, scores in {"decoder": similarity, "encoder": similarity.mT}.items():
            log_share = scores.log_softmax(-1)
            row[f"entropy_{name}"] = -(log_share.exp() * log_share).sum(-1).mean() / math.log(
                scores.shape[-1]
            )
        for name, before, after in zip(("decoder", "encoder"), inputs, outputs, strict=True):
            row[f"update_{name}"] = (after - before).norm() / before.norm()
        found.append({name: round(value.item(), 4) for name, value in row.items()})

    modules = [module for module in network.modules() if isinstance(module, BidirectionalSkipAttention)]
    hooks = [module.register_forward_hook(look) for module in modules]
    network.eval()
    network(torch.stack([image for image, _ in cases[:64]]).to(device))
    for hook in hooks:
        hook.remove()
    return found


def train(study: Study, name: str, seed: int, cases: dict[str, list]) -> dict:
    """One run -> its results."""
    torch.manual_seed(seed)
    network = VARIANTS[name]().to(study.device)
    optimizer_name, learning_rate = RECIPES[study.recipe]
    batches = len(cases["train"]) // study.batch_size
    steps = study.epochs * batches
    if optimizer_name == "AdEMAMix":
        optimizer = AdEMAMix(
            network.parameters(), learning_rate, weight_decouple=True, t_alpha_beta3=float(steps)
        )
    else:
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    images = torch.stack([case[0] for case in cases["train"]]).to(study.device)
    masks = torch.stack([case[1] for case in cases["train"]]).to(study.device)
    losses, start = [], time.perf_counter()
    for _ in range(study.epochs):
        network.train()
        epoch_losses = []
        for index in torch.randperm(len(images), generator=generator)[: batches * study.batch_size].split(
            study.batch_size
        ):
            image, mask = images[index], masks[index]
            if study.augmentation:
                image, mask = augment(image, mask, generator)
            loss = bce_dice(network(image), mask)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimizer.step()
            schedule.step()
            epoch_losses.append(loss.detach())
        losses.append(torch.stack(epoch_losses).mean().item())
    attention = diagnose(network, cases["val"], study.device)
    scores = {split: mean_dice(network, cases[split], study.device) for split in cases}
    # Is it the running statistics of the batch norms? The same images with the batch's own ones.
    batch_statistics = mean_dice(network, cases["val"], study.device, evaluation=False)
    return {
        "mDice": {split: round(float(np.mean(values)), 2) for split, values in scores.items()},
        "per_image_dice": {s: [round(v, 2) for v in values] for s, values in scores.items() if s != "train"},
        "parameters": sum(p.numel() for p in network.parameters()),
        "attention": attention,
        "mDice_val_batch_statistics": round(float(np.mean(batch_statistics)), 2),
        "loss_per_epoch": [round(value, 4) for value in losses],
        "seconds": round(time.perf_counter() - start, 1),
    }


def split_cases(study: Study) -> dict[str, list]:
    """train and val (every fifth training case), and each test set."""
    dataset = read_dataset(study.data)
    training = load_cases(dataset.training_cases, study.size)
    test = load_cases(dataset.test_cases, study.size)
    names = sorted(training)
    cases = {
        "train": [training[n] for i, n in enumerate(names) if i % 5],
        "val": [training[n] for i, n in enumerate(names) if i % 5 == 0],
    }
    return cases | {name: [test[n] for n in members] for name, members in dataset.test_sets.items()}


def main(study: Study) -> None:
    torch.set_num_threads(study.threads)
    study.out.mkdir(parents=True, exist_ok=True)
    cases = split_cases(study)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    for seed in study.seeds:
        for name in study.variant:
            augmentation = "" if study.augmentation else "_plain"
            run = f"{name}_{study.recipe}_{study.size}px_{study.epochs}ep{augmentation}_seed{seed}"
            file = study.out / f"{run}.json"
            if file.exists():
                continue
            result = train(study, name, seed, cases)
            settings = asdict(study) | {"data": study.data.name, "out": None, "variant": name, "seeds": seed}
            versions = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
            file.write_text(json.dumps({**settings, **versions, "commit": commit, **result}, indent=1))
            print(f"{run}: {result['mDice']} in {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Study))
