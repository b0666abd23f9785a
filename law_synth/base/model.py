"""Any Stable-Diffusion-1.x-like base model; every property of it is read from its configurations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json
from dataset_conversion.system.provenance import require
from law_synth.base.files import check_weights, find_base, hash_base, read_settings

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        ControlNetModel,
        DDPMScheduler,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

logger = logging.getLogger(__name__)

# Channels of diffusers' condition embedding, which halves the picture once per entry but the first.
EMBEDDING_CHANNELS = (16, 32, 96, 256)
PREDICTION_TYPES = ("epsilon", "v_prediction")
# UNet options that ask for inputs which SD 1.x does not have (class labels, SDXL's sizes, LCM's guidance),
# or for steps that `denoiser`'s split forward pass does not have.
FOREIGN_OPTIONS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "center_input_sample",
    "time_embedding_act_fn",
)


@dataclass(frozen=True)
class _Index:
    """What is read of model_index.json."""

    vae: tuple[str, str]
    """Library and class."""


@dataclass
class BaseModel:
    """The parts of a base model, in eval mode on one device; `load_base` makes it."""

    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    source: str
    """Absolute path of its folder, or its hub id."""
    hash: str
    _warned: bool = field(default=False, init=False, repr=False)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    def new_controlnet(self) -> ControlNetModel:
        """ControlNet for an RGB mask, copied from the UNet's encoder, with zero convolutions."""
        from diffusers import ControlNetModel

        length = self.latent_factor.bit_length()  # log2(factor) + 1
        channels = EMBEDDING_CHANNELS[:length]
        return ControlNetModel.from_unet(
            self.unet,
            conditioning_embedding_out_channels=channels + channels[-1:] * (length - len(channels)),
            conditioning_channels=3,
        )

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Text embeddings (N, L, D) fp32, L = 77 as a rule; longer prompts are cut, with one warning."""
        length = self.tokenizer.model_max_length
        uncut = self.tokenizer(prompts, verbose=False)["input_ids"]
        if not self._warned and max(map(len, uncut)) > length:
            self._warned = True
            logger.warning("prompts of more than %d tokens are cut at that length", length - 2)
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return self.text_encoder(ids.to(self.text_encoder.device))[0].float()

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, S, S) in [-1, 1] -> mean and std (N, C, S/f, S/f) fp32, in the UNet's latent space.

        The std is 0 for an AutoencoderTiny, which has no posterior.
        """
        shift, scale = self._shift_and_scale
        with torch.no_grad():
            encoded = self.vae.encode(images.to(self.vae.device, self.vae.dtype))
        if hasattr(encoded, "latents"):
            mean, std = encoded.latents.float(), torch.zeros_like(encoded.latents, dtype=torch.float32)
        else:
            mean, std = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
        return (mean - shift) * scale, std * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, S/f, S/f) of the UNet's space -> images (N, 3, S, S) fp32 in [-1, 1]."""
        shift, scale = self._shift_and_scale
        with torch.no_grad():
            images = self.vae.decode((latents / scale + shift).to(self.vae.device, self.vae.dtype)).sample
        return images.float().clamp(-1, 1)

    @property
    def _shift_and_scale(self) -> tuple[float, float]:
        config = self.vae.config
        return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor


def load_base(source: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> BaseModel:
    """Load a base model from a folder in diffusers layout or by its hub id; `dtype` is fp32 unless given.

    UserError: it cannot be found or downloaded, is incomplete, is of another architecture, or predicts
    neither epsilon nor v; a package of the extra `synth` is missing.
    """
    require("synth", "diffusers", "transformers", "accelerate")
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = find_base(source)
    vae_class = read_json(folder / "model_index.json", _Index, "get the model again").vae[1]
    if vae_class not in ("AutoencoderKL", "AutoencoderTiny"):
        raise UserError(
            f"{source}: found a VAE {vae_class}, expected AutoencoderKL or AutoencoderTiny; choose another "
            "base"
        )
    with quiet():
        models = {
            "unet": load_model(diffusers.UNet2DConditionModel, folder / "unet"),
            "vae": load_model(getattr(diffusers, vae_class), folder / "vae"),
            "text_encoder": load_model(CLIPTextModel, folder / "text_encoder"),
        }
        tokenizer = _read(CLIPTokenizer.from_pretrained, folder / "tokenizer")
        for model in models.values():
            model.to(device, dtype or torch.float32).requires_grad_(False).eval()
    # The noise levels only; a sampler makes its own scheduler from this one's configuration.
    scheduler = diffusers.DDPMScheduler.from_config(
        read_settings(folder / "scheduler" / "scheduler_config.json"), clip_sample=False
    )
    if (local := Path(source).expanduser()).is_dir():
        source = str(local.resolve())  # whoever reads it later may be in another folder
    base = BaseModel(
        **models, tokenizer=tokenizer, scheduler=scheduler, source=source, hash=hash_base(folder)
    )
    _check_architecture(base)
    return base


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and notes on loading and saving; errors still show."""
    import diffusers.utils.logging
    import transformers.utils.logging

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in loggers]
    for library in loggers:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(loggers, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def load_model(model_class: type, part: Path) -> torch.nn.Module:
    """A model of diffusers or transformers from its folder, in fp32.

    UserError: damaged, weights that are not safetensors or do not fit the configuration.
    """
    check_weights(part)
    model, report = _read(
        lambda path: model_class.from_pretrained(
            path, use_safetensors=True, local_files_only=True, output_loading_info=True
        ),
        part,
    )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{part}: found no weights for {missing[0]} ({len(missing)} such), expected every parameter of "
            f"{model_class.__name__}; get the model again"
        )
    return model


def _read(load: Callable[[Path], Any], part: Path) -> Any:
    try:
        return load(part)
    except Exception as error:  # OSError, ValueError, SafetensorError, RuntimeError by what is broken
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(
            f"{part}: cannot be loaded ({reason}), expected an intact part of a model; get it again"
        ) from error


def _check_architecture(base: BaseModel) -> None:
    config, source = base.unet.config, base.source
    foreign = [name for name in FOREIGN_OPTIONS if config.get(name)]
    if foreign:
        raise UserError(
            f"{source}: found a UNet with {foreign[0]} = {config[foreign[0]]}, expected one like Stable "
            "Diffusion 1.x; choose such a base"
        )
    if not config.in_channels == config.out_channels == base.latent_channels:
        raise UserError(
            f"{source}: found a UNet of {config.in_channels} input and {config.out_channels} output "
            f"channels, expected the VAE's {base.latent_channels} (for inpainting?); choose another base"
        )
    width = base.text_encoder.config.hidden_size
    if config.cross_attention_dim != width:
        raise UserError(
            f"{source}: found a text encoder of width {width}, expected the UNet's cross-attention width "
            f"{config.cross_attention_dim}; get the base again, as its parts are of different models"
        )
    if len(base.tokenizer) > base.text_encoder.config.vocab_size:
        raise UserError(
            f"{source}: found a tokenizer of {len(base.tokenizer)} tokens, expected at most the text "
            f"encoder's {base.text_encoder.config.vocab_size}; get the base again, as its parts are of "
            "different models"
        )
    prediction = base.scheduler.config.prediction_type
    if prediction not in PREDICTION_TYPES:
        raise UserError(
            f"{source}: found prediction_type {prediction}, expected {' or '.join(PREDICTION_TYPES)}; "
            "choose another base"
        )
