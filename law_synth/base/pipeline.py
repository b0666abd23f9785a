"""Stock diffusers pipelines on a base model, for the pictures of a training and for generation."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from law_synth.base.model import BaseModel

SamplerName = Literal["ddim", "unipc", "dpm++"]


def new_pipeline(base: BaseModel, controlnet: nn.Module, unet: nn.Module, sampler: SamplerName) -> Any:
    """Stock StableDiffusionControlNetPipeline without safety checker, which turns lesions black."""
    from diffusers import StableDiffusionControlNetPipeline

    pipeline = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=new_scheduler(base, sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def new_scheduler(base: BaseModel, sampler: SamplerName) -> Any:
    """A deterministic sampler with the base's noise levels and prediction type."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    config = base.scheduler.config
    if sampler == "ddim":  # as Stable Diffusion 1.5 sets it; eta is 0 by the pipeline's default
        return DDIMScheduler.from_config(
            config, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
        )
    return {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}[sampler].from_config(
        config
    )
