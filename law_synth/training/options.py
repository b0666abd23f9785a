"""The options of `law-synth train`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import Range, check_ranges, check_seed, check_window, flag
from law_synth.base.options import SLICES_PER_CASE
from law_synth.weightings import WEIGHTINGS, WeightingName

MOST = 1e9
RATES = (1e-12, 1e3)
DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@dataclass(frozen=True)
class Train:
    """Train a mask ControlNet and the UNet's decoder with a loss that is weighted towards lesions.

    The defaults are those of the paper, except for what docs/law.md lists. If the training is killed, the
    same command continues it from the last save. A higher --max-steps continues a finished run. To use
    several GPUs, start it with `torchrun --nproc_per_node N -m law_synth train ...` or `accelerate launch`.
    """

    dataset: str
    """The id, name or folder of an nnU-Net raw data set. Of volumes, 2D slices are trained on."""
    fold: Annotated[Fold, tyro.conf.arg(name="fold")] = 0
    """Train on the training cases of this fold, whose validation cases are then never seen, or on all
    cases."""
    base: str = DEFAULT_BASE
    """Start from this model like Stable Diffusion 1.x: a folder in diffusers layout, or a hub id."""
    weighting: WeightingName = "law"
    """Weight the loss of each pixel in this way; docs/law.md describes them."""
    preset: Literal["paper", "light"] = "paper"
    """Train with the teacher (paper), which takes about twice the memory and time, or without it (light)."""
    freeze_decoder: bool = False
    """Train only the ControlNets, and leave the UNet's decoder as it is."""
    out: Path | None = None
    """The run folder; by default $nnUNet_results/law_synth/<data set>/<weighting>__fold_<k>."""

    max_steps: Annotated[int, Range(1, MOST)] = 500
    """Train for this many optimizer steps."""
    batch_size: Annotated[int, Range(1, MOST)] = 4
    """Each process sees this many images per pass."""
    gradient_accumulation: Annotated[int, Range(1, MOST)] = 8
    """Each step adds up this many passes. The effective batch is batch size x passes x processes."""
    learning_rate: Annotated[float, Range(*RATES)] = 1e-5
    """AdamW trains the ControlNets and decoders at this rate."""
    weighter_learning_rate: Annotated[float, Range(*RATES)] = 1e-3
    """AdamW trains phi at this rate. At the paper's 1e-5, delta stays near 0.5 for 500 steps."""
    ema_decay: Annotated[float, Range(0, 0.999999)] = 0.0
    """Save an exponential moving average of the trained weights with this decay, such as 0.999; 0 for
    none."""
    size: Annotated[int | None, Range(8, 1e5)] = None
    """The side of the square training images in pixels; by default that of a base of init-base, else 384."""
    slices_per_case: Annotated[int, Range(1, MOST)] = SLICES_PER_CASE
    """Take at most this many slices of each volume, evenly spaced among those with lesions."""
    window: tuple[float, float] | None = None
    """Show these two values as black and white. The default is the base's, if init-base made it from the same
    data, else 0 255 for 8-bit files. Elsewhere it is the 0.5 and 99.5 percentiles of CT's foreground, or of
    all pixels of other images, widened by a tenth."""
    prompt: str | None = None
    """Describe every image with this text; by default "a medical image of a <label> and a <label>"."""
    empty_prompts: Annotated[float, Range(0, 1)] = 0.05
    """Give this share of the samples an empty prompt, which classifier-free guidance needs."""
    guidance_scale: Annotated[float | None, Range(1, 1e3)] = None
    """Draw the sample pictures with this guidance, which generate takes over as its default; by default that
    of a base of init-base, else 9."""
    mask_downsampling: Literal["area", "nearest"] = "area"
    """Bring the mask to latent size in this way; nearest, which ADC takes, loses small lesions."""

    tau: Annotated[float, Range(*RATES)] = 3.0
    """The temperature of delta in equation 4."""
    gamma: Annotated[float, Range(0, 1)] = 0.2
    """The strength of delta in equation 5."""
    normalize: bool = True
    """Divide the weights by their mean, as equation 7 does."""
    w_min: Annotated[float, Range(0)] = 1e-3
    """The lowest weight in equation 7; 0 for no bound."""
    w_max: Annotated[float, Range(0)] = 2.0
    """The highest weight in equation 7; inf for no bound."""
    dice: bool = True
    """Regularise delta with the Dice loss of equation 9."""
    lambda_dice: Annotated[float, Range(0)] = 1.0
    """The coefficient of phi's regulariser in equation 12."""
    beta_t: Annotated[float, Range(0)] = 0.05
    """The coefficient of the teacher's loss in equation 12."""
    beta_d: Annotated[float, Range(0)] = 0.05
    """The coefficient of the distillation in equation 12."""
    joint: bool = False
    """Let the weighted loss train phi, too, as the paper's text says. Phi then learns to avoid hard
    pixels."""
    detach_mask_control: bool = False
    """Keep the teacher's loss away from the mask ControlNet, which ADC does not."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Compute in this type by autocast. Trained weights stay fp32, frozen ones are stored in this type."""
    gradient_checkpointing: bool = False
    """Recompute activations, which takes less memory and a third more time."""
    monitor_cases: Annotated[int, Range(0, MOST)] = 16
    """Keep this many training cases, a tenth of them at most, for the fixed-noise loss only."""
    save_every: Annotated[int, Range(1, MOST)] = 100
    """Save after every so many steps; a kill loses at most the steps since the last save."""
    log_every: Annotated[int, Range(1, MOST)] = 10
    """Write a log entry after every so many steps."""
    sample_every: Annotated[int, Range(0, MOST)] = 250
    """Measure the fixed-noise loss and draw samples and delta maps after every so many steps; 0 for never."""
    seed: int = 0
    """The seed of the initial weights, the noise, the timesteps and the order of the cases."""
    device: Literal["auto", "cpu"] = "auto"
    """Compute on GPUs if there are any (auto), or on the CPU."""
    dry_run: bool = False
    """Check everything, say what would be done, and stop."""

    def check(self) -> None:
        """UserError: options that make no sense, alone or together."""
        check_ranges(self)
        check_seed(self.seed)
        if self.w_min > self.w_max:
            raise UserError(
                f"found --w-min {self.w_min} above --w-max {self.w_max}, expected it below; change one"
            )
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
                    f"found {flag(option.name)} with --weighting {self.weighting} --preset {self.preset}, "
                    "expected it only where it has an effect; drop it"
                )

    @property
    def teaches(self) -> bool:
        """Whether there is a teacher."""
        return self.preset == "paper"

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficient of each term of equation 12."""
        return {
            "student": 1.0,
            "teacher": self.beta_t,
            "distillation": self.beta_d,
            "dice": self.lambda_dice,
            "difficulty": self.lambda_dice,
        }

    @property
    def recorded(self) -> dict:
        """Options that decide what is trained, as JSON has them."""
        free = ("dataset", "base", "out", "max_steps", "save_every", "log_every", "sample_every", "device")
        options = {name: v for name, v in asdict(self).items() if name not in (*free, "dry_run")}
        return options | {"w_max": self.w_max if math.isfinite(self.w_max) else None}  # JSON has no infinity
