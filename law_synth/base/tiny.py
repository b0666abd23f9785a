"""Small models like Stable Diffusion, built offline: a base for tests, and what `init-base --from` trains."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import torch

from dataset_conversion.system.provenance import missing, require
from law_synth.base.model import quiet

CLIP_MERGES = 48_894  # of the CLIP tokenizer; with 512 bytes and 2 marks, 49,408 tokens
TINY_SIZE = 64  # pixels of an image's side; larger ones work, too
TINY_MERGES = 1_534  # the most frequent ones: 2,048 tokens, any prompt still tokenises


def write_tiny_base(
    folder: Path, latent_factor: int = 8, seed: int = 0, prediction_type: str = "epsilon"
) -> None:
    """Write a base of random weights in diffusers layout: 0.95 M parameters, made in a second.

    `latent_factor` is 4 or 8 pixels per latent cell; images of 64 px and more work. UserError: a package of
    the extra `synth` is missing.
    """
    require("synth", "diffusers", "transformers")
    tokenizer = clip_tokenizer(TINY_MERGES)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        save_base(
            folder,
            vae=new_vae((8, 16, 16, 16) if latent_factor == 8 else (8, 16, 16)),
            unet=new_unet((32, 64), layers=1),
            text_encoder=new_text_encoder(tokenizer),
            tokenizer=tokenizer,
            scheduler=new_scheduler(prediction_type),
        )


def save_base(folder: Path, vae, unet, text_encoder, tokenizer, scheduler) -> None:
    """Save the parts as a StableDiffusionPipeline folder (safetensors, no safety checker)."""
    from diffusers import StableDiffusionPipeline

    with quiet():
        StableDiffusionPipeline(
            vae=vae,
            unet=unet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)


def new_vae(channels: tuple[int, ...]):
    """AutoencoderKL of 4 latent channels and 2 ** (len(channels) - 1) pixels per latent cell."""
    from diffusers import AutoencoderKL

    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,  # more groups of so few channels would normalise an image's colour away
        scaling_factor=1.0,
    )


def new_unet(channels: tuple[int, ...], layers: int, text_width: int = 32):
    """UNet2DConditionModel in SD 1.5's shape: attention at every level but the deepest, 4 heads."""
    from diffusers import UNet2DConditionModel

    attending = len(channels) - 1
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        cross_attention_dim=text_width,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer, width: int = 32):
    """CLIPTextModel of two layers for the vocabulary of `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def new_scheduler(prediction_type: str = "epsilon"):
    """DDIM with the noise levels of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def clip_tokenizer(merges: int = CLIP_MERGES):
    """CLIP's tokenizer with its `merges` most frequent merges, from the file that open_clip brings along.

    With all of them the ids are those of Stable Diffusion 1.5.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    pairs = _clip_merges()[:merges]
    characters = sorted(ByteLevel.alphabet())  # code-point order is the order of CLIP's ids
    tokens = [*characters, *(f"{character}</w>" for character in characters), *map("".join, pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    # transformers 5 takes `vocab` and `merges`; it ignores the older vocab_file and merges_file.
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=pairs, model_max_length=77
    )


def _clip_merges() -> list[tuple[str, str]]:
    spec = importlib.util.find_spec("open_clip")  # found, not imported: the import takes seconds
    if spec is None:
        raise missing("synth", "open_clip", "its file of CLIP's tokens is needed")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1]]
