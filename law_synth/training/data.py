"""The cases of one fold in memory, and what is drawn for each sample of a training.

Everything random is a function of the seed and of the sample's position in the training, so that a resumed
run, or one on another number of processes, sees the same samples with the same noise.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataset_conversion.raw import RawDataset
from dataset_conversion.user_error import disk_full
from law_synth.base.model import BaseModel
from law_synth.cases import condition, read_rgb_case, resize_image, resize_mask
from law_synth.objective import Batch

ENCODED_AT_ONCE = 8  # images per pass of the VAE


class Draw(NamedTuple):
    """What is random about one sample."""

    case: int  # index into the cases
    timestep: int
    noise: Tensor  # (C, h, w)
    posterior_noise: Tensor  # (C, h, w), which picks the latent from the VAE's posterior
    prompt: bool  # False: trained with the empty prompt, for classifier-free guidance


@dataclass(frozen=True)
class Sampler:
    """Draws of a training: shuffled passes over the cases, each sample from a generator of its own."""

    seed: int
    cases: int
    latent_shape: tuple[int, int, int]
    timesteps: int
    empty_prompts: float

    def draw(self, position: int) -> Draw:
        """Sample number `position` of the training."""
        epoch, index = divmod(position, self.cases)
        order = torch.randperm(self.cases, generator=_generator(self.seed, epoch, 0))
        generator = _generator(self.seed, position, 1)
        return Draw(
            case=int(order[index]),
            timestep=int(torch.randint(self.timesteps, (), generator=generator)),
            noise=torch.randn(self.latent_shape, generator=generator),
            posterior_noise=torch.randn(self.latent_shape, generator=generator),
            prompt=bool(torch.rand((), generator=generator) >= self.empty_prompts),
        )


@dataclass
class TrainingData:
    """Cases at training size; `load_training_data` makes it."""

    case_ids: list[str]
    images: Tensor  # uint8 (N, 3, S, S)
    masks: Tensor  # uint8 of 0 and 1 (N, S, S)
    latent_masks: Tensor  # float (N, 1, h, w)
    mean: Tensor  # of the VAE's posterior, (N, C, h, w)
    std: Tensor
    text: Tensor  # empty prompt and prompt, (2, T, D)

    def batch(self, draws: list[Draw], device: torch.device, with_image: bool) -> Batch:
        """Samples as one batch on `device`; the clean image only for a teacher."""
        index = torch.tensor([draw.case for draw in draws])
        posterior_noise = torch.stack([draw.posterior_noise for draw in draws])
        batch = Batch(
            latents=self.mean[index] + self.std[index] * posterior_noise,
            noise=torch.stack([draw.noise for draw in draws]),
            timestep=torch.tensor([draw.timestep for draw in draws]),
            text=self.text[torch.tensor([int(draw.prompt) for draw in draws])],
            mask=self.latent_masks[index],
            condition=condition(self.masks[index].numpy()),
            image=self.images[index].float() / 255 if with_image else None,
        )
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))


def set_aside(case_ids: list[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Ids to train on, and `count` of them (a tenth at most) that only the fixed-noise loss sees."""
    count = min(count, len(case_ids) // 10)
    order = np.random.default_rng(seed).permutation(len(case_ids))
    chosen = {case_ids[i] for i in order[:count]}
    return [c for c in case_ids if c not in chosen], [c for c in case_ids if c in chosen]


def latent_mask(masks: Tensor, factor: int, downsampling: Literal["area", "nearest"]) -> Tensor:
    """Masks (N, S, S) of 0 and 1 -> (N, 1, h, w). `area` keeps r exact, `nearest` loses small lesions."""
    masks = masks[:, None].float()
    size = (masks.shape[2] // factor, masks.shape[3] // factor)
    if downsampling == "area":
        return F.adaptive_avg_pool2d(masks, size)
    return F.interpolate(masks, size, mode="nearest")


def load_training_data(
    dataset: RawDataset,
    case_ids: list[str],
    base: BaseModel,
    size: int,
    prompt: str,
    downsampling: Literal["area", "nearest"],
    cache: Path,
) -> TrainingData:
    """Read, resize and encode the cases. `cache`: folder that keeps the latents for a resume."""
    images, masks = [], []
    for case_id in track(case_ids, "reading cases"):
        image, mask = read_rgb_case(dataset, dataset.case(case_id))
        images.append(torch.from_numpy(resize_image(image, size).copy()).permute(2, 0, 1))
        masks.append(torch.from_numpy(resize_mask(mask, size).copy()))
    images, masks = torch.stack(images), torch.stack(masks)
    latents = _encode_cached(base, images, cache)
    return TrainingData(
        case_ids=case_ids,
        images=images,
        masks=masks,
        latent_masks=latent_mask(masks, base.latent_factor, downsampling),
        mean=latents["mean"],
        std=latents["std"],
        text=base.encode_prompts(["", prompt]).cpu(),
    )


def _encode_cached(base: BaseModel, images: Tensor, cache: Path) -> dict[str, Tensor]:
    """Posterior of every image, (N, C, h, w) each; kept under a name made of the images and the base."""
    key = hashlib.sha256(images.numpy().tobytes() + base.hash.encode()).hexdigest()[:16]
    path = cache / f"latents_{key}.safetensors"
    if path.is_file():
        return load_file(path)
    means, stds = [], []
    for chunk in track(images.split(ENCODED_AT_ONCE), "encoding images"):
        mean, std = base.posterior(chunk.float() / 127.5 - 1)
        means.append(mean.float().cpu().contiguous())
        stds.append(std.float().cpu().contiguous())
    latents = {"mean": torch.cat(means), "std": torch.cat(stds)}
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".latents_{key}.{os.getpid()}.partial"
    with disk_full(path):
        save_file(latents, partial)
        os.replace(partial, path)
    return latents


def _generator(*key: int) -> torch.Generator:
    """A CPU generator of its own for every key."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    )
