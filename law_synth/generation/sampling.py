"""From masks and noise to images, batch by batch, through diffusers' stock ControlNet pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from law_synth.base.model import BaseModel
from law_synth.base.pipeline import SamplerName, new_pipeline
from law_synth.view.classes import condition

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How noise becomes an image."""

    sampler: SamplerName
    steps: int
    guidance_scale: float
    prompt: str
    dtype: Literal["fp32", "bf16", "fp16"]
    compile: bool


class OncePerBatch(nn.Module):
    """Calls `embed` only for a new input tensor: the pipeline asks for the mask's embedding in every step."""

    def __init__(self, embed: nn.Module):
        super().__init__()
        self.embed = embed
        self._last: tuple[Tensor | None, Tensor | None] = None, None

    def forward(self, mask: Tensor) -> Tensor:
        if self._last[0] is not mask:
            self._last = mask, self.embed(mask)
        return self._last[1]


class ImageSampler:
    """Generates batches: `sampler(masks, seeds)`. The same batch gives the same bytes on the same machine."""

    def __init__(
        self,
        base: BaseModel,
        controlnet: ControlNetModel,
        unet: UNet2DConditionModel,
        settings: Sampling,
        device: torch.device,
        class_count: int,
    ):
        self.base, self.settings, self.device, self.class_count = base, settings, device, class_count
        self.dtype = DTYPES[settings.dtype]
        torch.backends.cudnn.deterministic = True
        text, empty = base.encode_prompts([settings.prompt, ""]).to(device, self.dtype)
        self._prompts = {"prompt_embeds": text, "negative_prompt_embeds": empty}
        base.text_encoder.to(device, self.dtype)  # the pipeline takes its type for that of the embeddings
        for model in (unet, controlnet, base.vae):
            model.to(device, self.dtype, memory_format=torch.channels_last).requires_grad_(False)
        if settings.compile:
            from torch._inductor import config

            # Otherwise each process chooses kernels by its own timing, and sums in an order of its own.
            if hasattr(config, "deterministic"):
                config.deterministic = True
            unet, controlnet = torch.compile(unet), torch.compile(controlnet)
        else:
            controlnet.controlnet_cond_embedding = OncePerBatch(controlnet.controlnet_cond_embedding)
        self._pipeline = new_pipeline(base, controlnet, unet, settings.sampler)

    def __call__(self, masks: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Class numbers (B, S, S) and the seed of each sample's noise -> RGB in [0, 255], float (B, S, S, 3).

        Not rounded: 16-bit data sets have more than 256 levels.

        FloatingPointError: an image is not finite.
        """
        count, size = len(masks), masks.shape[-1] // self.base.latent_factor
        shape = (self.base.latent_channels, size, size)
        latents = self._pipeline(
            image=condition(masks, self.class_count).contiguous(),
            latents=noise(shape, seeds).to(self.device, self.dtype),
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
            output_type="latent",
            **{name: embedding.expand(count, -1, -1) for name, embedding in self._prompts.items()},
        ).images
        images = self.base.decode(latents)  # clamps infinities
        if not (latents.isfinite().all() and images.isfinite().all()):
            raise FloatingPointError
        pixels = (images + 1) * 127.5
        return pixels.permute(0, 2, 3, 1).cpu().numpy()


def noise(shape: tuple[int, ...], seeds: Sequence[int]) -> Tensor:
    """Standard normal (B, *shape) fp32. Each sample has its own CPU generator, so batches do not matter."""
    samples = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(samples)


def derived_seed(seed: int, index: int, purpose: str) -> int:
    """A seed of 63 bits for one sample and purpose."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
