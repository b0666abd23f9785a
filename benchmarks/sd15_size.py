"""Write a base of Stable Diffusion 1.5's size with random weights, to measure memory and time without them.

    python benchmarks/sd15_size.py --out sd15_random
    law-synth train --dataset 500 --base sd15_random --preset light --freeze-decoder --mixed-precision bf16

The configurations are the published ones; the pictures are noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from law_synth.base.tiny import clip_tokenizer, new_scheduler, save_base


def main(out: Path) -> None:
    """Write the base into `out` (2 GB, half precision)."""
    torch.set_default_dtype(torch.bfloat16)  # 24 GB machines hold it together with a training
    tokenizer = clip_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            hidden_act="quick_gelu",
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=512,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    torch.set_default_dtype(torch.float32)
    save_base(
        out, vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=new_scheduler()
    )


if __name__ == "__main__":
    tyro.cli(main)
