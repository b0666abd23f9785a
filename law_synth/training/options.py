"""The options of `law-synth train`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed
from dataset_conversion.volumes import check_window
from law_synth.base.seen import SLICES_PER_CASE
from law_synth.weightings import WEIGHTINGS, WeightingName

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
RANGES = {
    **dict.fromkeys(
        ("max_steps", "batch_size", "gradient_accumulation", "save_every", "log_every", "slices_per_case"),
        (1, 1e9),
    ),
    **dict.fromkeys(("learning_rate", "weighter_learning_rate", "tau"), (1e-12, 1e3)),
    **dict.fromkeys(("lambda_dice", "beta_t", "beta_d", "w_min", "w_max"), (0, float("inf"))),
    **dict.fromkeys(("empty_prompts", "gamma"), (0, 1)),
    **dict.fromkeys(("monitor_cases", "sample_every"), (0, 1e9)),
    "ema_decay": (0, 0.999999),
    "size": (8, 1e5),
    "guidance_scale": (1, 1e3),
}


@dataclass(frozen=True)
class Train:
    """Train a mask ControlNet, and the UNet's decoder, whose loss looks where lesions are.

    The defaults are the paper's but for what docs/law.md lists. A killed run goes on where it was saved last
    when the same command is given again; a higher --max-steps continues a finished one. Several GPUs: start
    it with `torchrun --nproc_per_node N -m law_synth train ...` or `accelerate launch`.
    """

    dataset: str
    """Id, name or folder of an nnU-Net raw data set: pictures, or volumes, whose 2D slices are trained on."""
    fold: Annotated[int | Literal["all"], tyro.conf.arg(name="fold")] = 0
    """Train on this fold's training cases (its validation cases are never seen), or on all."""
    base: str = DEFAULT_BASE
    """Stable-Diffusion-1.x-like model: folder in diffusers layout, or hub id."""
    weighting: WeightingName = "law"
    """What the loss looks at: see docs/law.md."""
    preset: Literal["paper", "light"] = "paper"
    """paper: with the teacher (about twice the memory and time). light: without."""
    freeze_decoder: bool = False
    """Train the ControlNets only, not the UNet's decoder."""
    out: Path | None = None
    """Run folder; $nnUNet_results/law_synth/<data set>/<weighting>__fold_<k> by default."""

    max_steps: int = 500
    """Optimizer steps."""
    batch_size: int = 4
    """Images per process and pass."""
    gradient_accumulation: int = 8
    """Passes per step; the effective batch is batch size x this x processes."""
    learning_rate: float = 1e-5
    """AdamW's, for ControlNets and decoders."""
    weighter_learning_rate: float = 1e-3
    """AdamW's for phi; at the paper's 1e-5 delta stays near 0.5 for 500 steps."""
    ema_decay: float = 0.0
    """Above 0: an exponential moving average of the trained weights is what is saved, e.g. 0.999."""
    size: int | None = None
    """Side of the square training images in pixels; by default the base's own (init-base), else 384."""
    slices_per_case: int = SLICES_PER_CASE
    """Of a volume: evenly spaced slices with lesions, at most so many."""
    window: tuple[float, float] | None = None
    """Values shown as black and white; by default the base's (init-base on the same data), else 0 255 for
    8-bit files, the 0.5 and 99.5 percentile of CT's foreground and of other images' pixels, plus a tenth."""
    prompt: str | None = None
    """Text of every image; "a medical image of a <label> and a <label>" by default."""
    empty_prompts: float = 0.05
    """Share of samples with an empty prompt, for classifier-free guidance."""
    guidance_scale: float | None = None
    """For sample pictures, and what generate takes by default; the base's own (init-base), else 9."""
    mask_downsampling: Literal["area", "nearest"] = "area"
    """How the mask comes to latent size; nearest (ADC) loses small lesions."""

    tau: float = 3.0
    """Temperature of delta, equation 4."""
    gamma: float = 0.2
    """Strength of delta, equation 5."""
    normalize: bool = True
    """Divide the weights by their mean, equation 7."""
    w_min: float = 1e-3
    """Lowest weight, equation 7; 0 for none."""
    w_max: float = 2.0
    """Highest weight, equation 7; inf for none."""
    dice: bool = True
    """Dice regulariser of delta, equation 9."""
    lambda_dice: float = 1.0
    """Coefficient of the regulariser of phi, equation 12."""
    beta_t: float = 0.05
    """Coefficient of the teacher's loss, equation 12."""
    beta_d: float = 0.05
    """Coefficient of the distillation, equation 12."""
    joint: bool = False
    """Let the weighted loss train phi, too, as in the paper's text; it then avoids hard pixels."""
    detach_mask_control: bool = False
    """Keep the teacher's loss away from the mask ControlNet; ADC does not."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast; trained weights stay fp32, frozen ones are stored in this type."""
    gradient_checkpointing: bool = False
    """Less memory, a third more time."""
    monitor_cases: int = 16
    """Of the training cases, so many (a tenth at most) are kept for the fixed-noise loss only."""
    save_every: int = 100
    """Steps between saves; a kill loses at most these."""
    log_every: int = 10
    """Steps between log entries."""
    sample_every: int = 250
    """Steps between the fixed-noise loss, sample grids and delta maps; 0 for none."""
    seed: int = 0
    """Of initial weights, noise, timesteps and order."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: GPUs where there are some."""
    dry_run: bool = False
    """Check everything, say what would be done and stop."""

    def check(self) -> None:
        """UserError: options that make no sense, alone or together."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"found --{_flag(name)} {value}, expected {low:g} to {high:g}; change it")
        check_seed(self.seed)
        if self.w_min > self.w_max:
            raise UserError(f"found --w-min {self.w_min} above --w-max {self.w_max}, expected it below")
        if WEIGHTINGS[self.weighting].needs_teacher and not self.teaches:
            raise UserError(
                f"found --weighting {self.weighting} with --preset light, expected the teacher that it "
                "distils from; give --preset paper"
            )
        if self.weighting == "law" and not self.dice and not self.joint:
            raise UserError("found --no-dice without --joint, expected a loss that trains delta; add --joint")
        check_window(self.window)
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """UserError: an option that this weighting or preset has no use for."""
        of_some = {option for weighting in WEIGHTINGS.values() for option in weighting.options}
        useless = of_some.difference(WEIGHTINGS[self.weighting].options)
        if not self.dice:
            useless.add("lambda_dice")
        if not self.teaches:
            useless.update(("beta_t", "beta_d", "detach_mask_control"))
        for option in fields(self):
            if option.name in useless and getattr(self, option.name) != option.default:
                raise UserError(
                    f"found --{_flag(option.name)} with --weighting {self.weighting} --preset {self.preset}, "
                    "expected it only where it has an effect; drop it"
                )

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher."""
        return self.preset == "paper"

    @property
    def recorded(self) -> dict:
        """Options that decide what is trained, as JSON has them."""
        free = ("dataset", "base", "out", "max_steps", "save_every", "log_every", "sample_every", "device")
        options = {name: v for name, v in asdict(self).items() if name not in (*free, "dry_run")}
        return options | {"w_max": self.w_max if math.isfinite(self.w_max) else None}  # JSON has no infinity


def _flag(name: str) -> str:
    return name.replace("_", "-")
