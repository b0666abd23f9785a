"""Train a small base model: the autoencoder, then the UNet on its latents, then a picture of both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from law_synth.base import tiny
from law_synth.base.losses import (
    Batches,
    autocast,
    cache_latents,
    random_prompts,
    standardize_latents,
    unet_loss,
    vae_loss,
)
from law_synth.base.model import quiet
from law_synth.base.model_training import ModelTraining
from law_synth.base.options import InitBase

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

logger = logging.getLogger(__name__)

EMA_DECAY = 0.997
VAE_RATE = 2.5  # its learning rate in terms of the UNet's
SAMPLES, SAMPLING_STEPS = 8, 30


def train_base(
    options: InitBase, work: Path, device: torch.device, images: np.ndarray, held_back: np.ndarray
) -> dict:
    """Train on images uint8 (N, S, S, 3), checkpoints in `work`, and save the base into `options.out`.

    -> what is worth recording: PSNR of the held-back images' reconstructions and the losses. UserError: a
    loss is not finite.
    """
    tokenizer = tiny.clip_tokenizer()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(options.seed)
        vae = tiny.new_vae(vae_channels(options))
        unet = tiny.new_unet(tuple(options.unet_width * i for i in (1, 2, 3)), options.unet_layers)
        text_encoder = tiny.new_text_encoder(tokenizer)
    scheduler = tiny.new_scheduler(options.prediction_type)
    for model in (vae, unet, text_encoder):
        model.to(device, memory_format=torch.channels_last)
    batches = Batches(images, options.batch_size, options.flips, options.seed, device)

    vae_losses = _train_vae(options, work, vae, batches)
    reconstructions = reconstruct(vae, replace(batches, images=held_back))
    psnr = peak_signal_to_noise(held_back, reconstructions)
    logger.info("VAE: PSNR %.1f dB on %d images", psnr, len(held_back))

    prompts = random_prompts(tokenizer, text_encoder, batches.generator(2, 0))
    loss = unet_loss(unet, scheduler, cache_latents(vae, batches), prompts, batches)
    unet_losses = _train_unet(options, work, unet, loss)
    logger.info("UNet: loss %.4f over the last steps", mean_of_last(unet_losses))

    tiny.save_base(options.out, vae, unet, text_encoder, tokenizer, scheduler)
    samples = sample(options.out, options.image_size, options.seed, device)
    draw_samples(options.out / "samples.png", held_back, reconstructions, samples)
    return {
        "images": len(images),
        "psnr": psnr,
        "vae_loss": mean_of_last(vae_losses),
        "unet_loss": mean_of_last(unet_losses),
        "unet_loss_curve": loss_curve(unet_losses),
    }


def _train_vae(options: InitBase, work: Path, vae: AutoencoderKL, batches: Batches) -> list[float]:
    rate = VAE_RATE * options.learning_rate
    training = ModelTraining("VAE", vae, vae_loss(vae, batches), options.vae_steps, rate)
    training.train(work / "vae.pt", options.checkpoint_every, options.batch_size)
    standardize_latents(vae, batches)
    return training.losses


def _train_unet(
    options: InitBase, work: Path, unet: UNet2DConditionModel, loss: Callable[[int], Tensor]
) -> list[float]:
    from diffusers.training_utils import EMAModel

    ema = EMAModel(unet.parameters(), decay=EMA_DECAY, foreach=True)
    training = ModelTraining("UNet", unet, loss, options.unet_steps, options.learning_rate, ema)
    training.train(work / "unet.pt", options.checkpoint_every, options.batch_size)
    ema.copy_to(unet.parameters())
    return training.losses


def vae_channels(options: InitBase) -> tuple[int, ...]:
    """Width x (1, 2, 4) at factor 4 and x (1, 2, 4, 4) at factor 8."""
    return tuple(options.vae_width * i for i in (1, 2, 4, 4)[: options.vae_factor.bit_length()])


def mean_of_last(losses: list[float]) -> float:
    """Mean over the last tenth of the steps, which differ much by their noise levels."""
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


def loss_curve(losses: list[float], points: int = 20) -> list[float]:
    """Means over equal parts of the training."""
    return [float(np.mean(part)) for part in np.array_split(losses, min(points, len(losses)))]


def reconstruct(vae: AutoencoderKL, batches: Batches) -> np.ndarray:
    """Images after encoding and decoding, uint8 (N, S, S, 3)."""
    with torch.no_grad(), autocast(batches.device):
        latents = [vae.encode(batches.pixels(chunk)).latent_dist.mean for chunk in batches.chunks()]
        decoded = [vae.decode(latent).sample for latent in latents]
    return to_uint8(torch.cat(decoded))


def sample(base: Path, size: int, seed: int, device: torch.device) -> np.ndarray:
    """Images that the base draws from noise without a prompt, uint8 (8, S, S, 3), by the stock pipeline."""
    from diffusers import StableDiffusionPipeline

    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, use_safetensors=True)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [""] * SAMPLES,
        height=size,
        width=size,
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(seed + index) for index in range(SAMPLES)],
        output_type="np",
    ).images
    return np.rint(images * 255).astype(np.uint8)


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, 3, S, S) in [-1, 1] -> uint8 (N, S, S, 3)."""
    pixels = (images.float().clamp(-1, 1) * 127.5 + 127.5).round()
    return pixels.byte().permute(0, 2, 3, 1).cpu().numpy()


def peak_signal_to_noise(images: np.ndarray, reconstructions: np.ndarray) -> float:
    """PSNR in dB of 8-bit images (N, S, S, 3), computed per image, then averaged."""
    errors = ((images.astype(float) - reconstructions) ** 2).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-10))))


def draw_samples(path: Path, real: np.ndarray, reconstructions: np.ndarray, samples: np.ndarray) -> None:
    """Picture of three rows: held-back images, what the autoencoder keeps of them, unconditional samples."""
    from matplotlib.figure import Figure

    rows = {"held back": real, "VAE": reconstructions, "sampled": samples}
    figure = Figure(figsize=(1.2 * SAMPLES + 0.5, 3.75), dpi=120, layout="constrained")
    for axes, (title, images) in zip(figure.subplots(3, SAMPLES), rows.items(), strict=True):
        axes[0].set_ylabel(title)
        for axis in axes:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, image in zip(axes, images, strict=False):
            axis.imshow(image, interpolation="nearest")
    figure.savefig(path)
