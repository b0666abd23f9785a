"""Losses of a small base model that is trained on images alone: the autoencoder's, then the UNet's.

Everything random is drawn from (seed, stage, step), so that a training goes on from weights, optimizer and
step number as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from law_synth.base.options import Flips
from law_synth.generators import keyed_generator
from nnunet_order.devices import has_bf16

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

FLIPS: dict[Flips, list[tuple[int, ...]]] = {
    "both": [(), (-1,), (-2,), (-2, -1)],
    "horizontal": [(), (-1,)],
    "none": [()],
}
KL_WEIGHT = 1e-4
PROMPTS = 256  # texts of random words that the UNet learns to ignore: the images have no captions


@dataclass(frozen=True)
class Batches:
    """Images uint8 (N, S, S, 3) in memory, and batches of them drawn by step."""

    images: np.ndarray
    batch_size: int
    flips: Flips
    seed: int
    device: torch.device

    def generator(self, stage: int, step: int) -> torch.Generator:
        """A CPU generator of its own for every step: neither a resume nor the device changes the draw."""
        return keyed_generator(self.seed, stage, step)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of images and of flips, both (B,)."""
        index = torch.randint(len(self.images), (self.batch_size,), generator=generator)
        return index, torch.randint(len(FLIPS[self.flips]), (self.batch_size,), generator=generator)

    def pixels(self, index: Tensor | slice, flip: tuple[int, ...] = ()) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] on the device, channels last."""
        batch = torch.from_numpy(self.images[index]).to(self.device).permute(0, 3, 1, 2)
        pixels = batch.flip(flip).float() / 127.5 - 1
        return pixels.contiguous(memory_format=torch.channels_last)

    def chunks(self) -> Iterator[slice]:
        """Slices of `batch_size` that cover all images."""
        for start in range(0, len(self.images), self.batch_size):
            yield slice(start, start + self.batch_size)


def vae_loss(vae: AutoencoderKL, batches: Batches) -> Callable[[int], Tensor]:
    """Loss of a step: L1 of pixels + L1 of their differences (edges) + 1e-4 KL, means over elements."""

    def edges(x: Tensor, y: Tensor, axis: int) -> Tensor:
        return (x.diff(dim=axis) - y.diff(dim=axis)).abs().mean()

    def loss(step: int) -> Tensor:
        generator = batches.generator(0, step)
        index, flip = batches.draw(generator)
        x = batches.pixels(index)
        for number, axes in enumerate(FLIPS[batches.flips]):
            if axes:
                x = torch.where((flip == number).to(x.device)[:, None, None, None], x.flip(axes), x)
        with autocast(x.device):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return (x - y).abs().mean() + edges(x, y, 2) + edges(x, y, 3) + KL_WEIGHT * kl

    return loss


def standardize_latents(vae: AutoencoderKL, batches: Batches) -> None:
    """Give the latents of the images mean 0 and standard deviation 1 per channel, in place.

    (x - mean) / sd goes into quant_conv and its inverse into post_quant_conv: both are 1x1, so the decoded
    images do not change, and any pipeline finds the scaling factor 1. (SD's one factor leaves the mean.)
    """
    total, squares, count = 0.0, 0.0, 0
    with torch.no_grad():
        for chunk in batches.chunks():
            posterior = vae.encode(batches.pixels(chunk)).latent_dist
            mean, variance = posterior.mean.double(), posterior.var.double()
            total = total + mean.sum((0, 2, 3))
            squares = squares + (mean**2 + variance).sum((0, 2, 3))
            count += mean[:, 0].numel()
        mean = total / count
        sd = (squares / count - mean**2).sqrt()
        channels, encode, decode = len(mean), vae.quant_conv, vae.post_quant_conv
        decode.bias += (decode.weight[:, :, 0, 0].double() @ mean).to(decode.bias.dtype)
        decode.weight *= sd[:, None, None].to(decode.weight.dtype)
        encode.bias[:channels] -= mean.to(encode.bias.dtype)
        encode.bias[:channels] /= sd.to(encode.bias.dtype)
        encode.weight[:channels] /= sd[:, None, None, None].to(encode.weight.dtype)
        encode.bias[channels:] -= 2 * sd.log().to(encode.bias.dtype)  # its output is the log variance


def cache_latents(vae: AutoencoderKL, batches: Batches) -> tuple[Tensor, Tensor]:
    """Posterior mean and std (F, N, C, h, w) of every image in every flip."""
    means, stds = [], []
    with torch.no_grad():
        for axes in FLIPS[batches.flips]:
            posteriors = [vae.encode(batches.pixels(chunk, axes)).latent_dist for chunk in batches.chunks()]
            means.append(torch.cat([posterior.mean for posterior in posteriors]))
            stds.append(torch.cat([posterior.std for posterior in posteriors]))
    return torch.stack(means), torch.stack(stds)


def unet_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: tuple[Tensor, Tensor],
    prompts: Tensor,
    batches: Batches,
) -> Callable[[int], Tensor]:
    """Loss of a step: squared error of the predicted noise (or v).

    `prompts` (P, L, D): half of a batch sees the first one, which is the empty prompt.
    """
    means, stds = latents

    def loss(step: int) -> Tensor:
        generator = batches.generator(1, step)
        index, flip = (draw.to(means.device) for draw in batches.draw(generator))
        mean, std = means[flip, index], stds[flip, index]
        spread, noise = (torch.randn(mean.shape, generator=generator).to(mean.device) for _ in range(2))
        t = torch.randint(scheduler.config.num_train_timesteps, (len(mean),), generator=generator)
        prompt = torch.randint(len(prompts), (len(mean),), generator=generator)
        prompt[: len(mean) // 2] = 0
        t = t.to(mean.device)
        clean = mean + std * spread
        noisy = scheduler.add_noise(clean, noise, t)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with autocast(mean.device):
            predicted = unet(noisy, t, prompts[prompt.to(mean.device)]).sample
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(clean, noise, t)
        return torch.nn.functional.mse_loss(predicted.float(), target)

    return loss


def random_prompts(tokenizer, text_encoder: torch.nn.Module, generator: torch.Generator) -> Tensor:
    """Embeddings (PROMPTS, 77, D) of the empty prompt and of random words."""
    length = tokenizer.model_max_length
    ids = torch.full((PROMPTS, length), tokenizer.eos_token_id)
    ids[:, 0] = tokenizer.bos_token_id
    for row in ids[1:]:
        words = int(torch.randint(1, length - 1, (), generator=generator))
        row[1 : words + 1] = torch.randint(tokenizer.bos_token_id, (words,), generator=generator)
    with torch.no_grad():
        return text_encoder(ids.to(text_encoder.device))[0]


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on GPUs that have it, which needs no loss scaling; plain fp32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device))
