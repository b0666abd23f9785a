"""The cases of one fold in memory, and what is drawn for each sample of a training.

Grey goes into the RGB autoencoder three times, as the view gives it, and comes out as the mean of the three
channels (`law_synth.view.window`).

Everything random is a function of the seed and of the sample's position in the training, so that a resumed
run, or one on another number of processes, sees the same samples with the same noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataset_conversion.system.errors import writing
from law_synth.base.model import BaseModel
from law_synth.generators import keyed_generator
from law_synth.objective import Batch
from law_synth.view.classes import condition, one_hot
from law_synth.view.resize import resize_image, resize_mask
from law_synth.view.slices import Slice, SliceView
from law_synth.weighting import has_several

ENCODED_AT_ONCE = 8  # images per pass of the VAE


class Draw(NamedTuple):
    """What is random about one sample."""

    case: int  # index into the cases (slices of volumes)
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

    def case(self, position: int) -> int:
        """Of which case sample number `position` of the training is."""
        epoch, index = divmod(position, self.cases)
        order = torch.randperm(self.cases, generator=keyed_generator(self.seed, epoch, 0, bits=63))
        return int(order[index])

    def draw(self, position: int) -> Draw:
        """Sample number `position` of the training."""
        generator = keyed_generator(self.seed, position, 1, bits=63)
        return Draw(
            case=self.case(position),
            timestep=int(torch.randint(self.timesteps, (), generator=generator)),
            noise=torch.randn(self.latent_shape, generator=generator),
            posterior_noise=torch.randn(self.latent_shape, generator=generator),
            prompt=bool(torch.rand((), generator=generator) >= self.empty_prompts),
        )


@dataclass
class TrainingData:
    """Cases, or slices of volumes, at training size; `load_training_data` makes it."""

    slices: list[Slice]
    images: Tensor  # uint8 (N, 3, S, S)
    masks: Tensor  # uint8 class numbers (N, S, S)
    latent_masks: Tensor  # float (N, K, h, w)
    mean: Tensor  # of the VAE's posterior, (N, C, h, w)
    std: Tensor
    text: Tensor  # empty prompt and prompt, (2, T, D)

    @cached_property
    def several(self) -> Tensor:
        """Whether each case's mask shows two or more of background and classes, bool (N,)."""
        return has_several(self.latent_masks).flatten()

    def batch(
        self, draws: list[Draw], device: torch.device, with_image: bool, several: float | None = None
    ) -> Batch:
        """Samples as one batch on `device`; the clean image only for a teacher; `several`: as in `Batch`."""
        index = torch.tensor([draw.case for draw in draws])
        posterior_noise = torch.stack([draw.posterior_noise for draw in draws])
        batch = Batch(
            latents=self.mean[index] + self.std[index] * posterior_noise,
            noise=torch.stack([draw.noise for draw in draws]),
            timestep=torch.tensor([draw.timestep for draw in draws]),
            text=self.text[torch.tensor([int(draw.prompt) for draw in draws])],
            mask=self.latent_masks[index],
            condition=condition(self.masks[index].numpy(), self.latent_masks.shape[1]).contiguous(),
            image=self.images[index].float() / 255 if with_image else None,
            several=None if several is None else torch.full((len(draws),), several),
        )
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in batch))


def latent_mask(masks: Tensor, factor: int, downsampling: Literal["area", "nearest"]) -> Tensor:
    """Masks (N, K, S, S) of 0 and 1 -> (N, K, h, w). `area` keeps r exact, `nearest` loses small lesions."""
    size = (masks.shape[2] // factor, masks.shape[3] // factor)
    if downsampling == "area":
        return F.adaptive_avg_pool2d(masks, size)
    return F.interpolate(masks, size, mode="nearest")


def load_training_data(
    view: SliceView,
    slices: list[Slice],
    base: BaseModel,
    size: int,
    prompt: str,
    downsampling: Literal["area", "nearest"],
    cache: Path,
) -> TrainingData:
    """Read, resize and encode the slices. `cache`: folder that keeps the latents for a resume."""
    images, masks = [], []
    for one in track(slices, "reading cases"):
        image, mask = view.read(one)
        images.append(torch.from_numpy(resize_image(image, size).copy()).permute(2, 0, 1))
        masks.append(torch.from_numpy(resize_mask(mask, size).copy()))
    images, masks = torch.stack(images), torch.stack(masks)
    latents = _encode_cached(base, images, cache)
    at_latent_size = [  # a few at a time: one number per class and pixel is many times the masks
        latent_mask(one_hot(some, view.classes.count), base.latent_factor, downsampling)
        for some in masks.split(ENCODED_AT_ONCE)
    ]
    return TrainingData(
        slices=slices,
        images=images,
        masks=masks,
        latent_masks=torch.cat(at_latent_size),
        mean=latents["mean"],
        std=latents["std"],
        text=base.encode_prompts(["", prompt]).cpu(),
    )


def _encode_cached(base: BaseModel, images: Tensor, cache: Path) -> dict[str, Tensor]:
    """Posterior of every image, (N, C, h, w) each; kept under a name made of the images and the base."""
    digest = hashlib.sha256(images.numpy())
    digest.update(base.hash.encode())
    key = digest.hexdigest()[:16]
    path = cache / f"latents_{key}.safetensors"
    if path.is_file():
        with contextlib.suppress(SafetensorError, OSError):  # a damaged file is computed anew
            return load_file(path)
    means, stds = [], []
    for chunk in track(images.split(ENCODED_AT_ONCE), "encoding images"):
        mean, std = base.posterior(chunk.float() / 127.5 - 1)
        means.append(mean.float().cpu().contiguous())
        stds.append(std.float().cpu().contiguous())
    latents = {"mean": torch.cat(means), "std": torch.cat(stds)}
    partial = cache / f".latents_{key}.{os.getpid()}.partial"
    with writing(path):
        cache.mkdir(parents=True, exist_ok=True)
        save_file(latents, partial)
        os.replace(partial, path)
    return latents
