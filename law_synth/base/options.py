"""The options of `law-synth init-base`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import Range, check_ranges, check_seed, check_window, flag

SLICES_PER_CASE = 16
Flips = Literal["both", "horizontal", "none"]

# Options that --size tiny has, too; options that may change when a training goes on.
COMMON = ("out", "size", "seed", "vae_factor", "prediction_type", "dry_run")
NOT_THE_RESULT = ("out", "device", "checkpoint_every", "dry_run")


@dataclass(frozen=True)
class InitBase:
    """Make a small base model in diffusers layout, either of random weights or trained on a data set.

    `--size tiny` writes random weights for tests and takes seconds. `--from DATASET` trains an autoencoder
    and then a UNet on the images of one fold's training cases. With the defaults that takes about 10 minutes
    on one CPU core. If the training is killed, the same command continues it. The folder also holds
    samples.png, with images that were held back, reconstructed and sampled, and base_config.json, which lists
    the cases seen.
    """

    out: Path
    """The folder of the base model."""
    size: Literal["tiny"] | None = None
    """Write random weights of this size instead of training with --from."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The data set to train on: its id (500), name (Dataset500_Polyps) or folder."""
    fold: Fold = 0
    """Train on the training cases of this fold only, so that its validation images stay unseen, or on all."""
    slices_per_case: Annotated[int, Range(1)] = SLICES_PER_CASE
    """Take at most this many slices of each volume, evenly spaced among those with lesions."""
    window: tuple[float, float] | None = None
    """Show these two values as black and white. The default is 0 255 for 8-bit files. Elsewhere it is the
    0.5 and 99.5 percentiles of CT's foreground, or of all pixels of other images, widened by a tenth.
    Trainings on the base take it over."""
    image_size: int = 64
    """The side of the training images in pixels, a multiple of 4 x --vae-factor."""
    vae_factor: Literal[4, 8] = 4
    """Each latent cell covers this many pixels along a side."""
    vae_width: int = 16
    """The autoencoder has this many channels at full resolution, a multiple of 8."""
    unet_width: int = 48
    """The UNet has this many channels at its first level, a multiple of 16; the next two levels have 2 and 3
    times as many."""
    unet_layers: Annotated[int, Range(1)] = 1
    """The UNet has this many residual blocks per level; Stable Diffusion has 2."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """The UNet predicts the noise (epsilon) or the velocity (v_prediction)."""
    vae_steps: Annotated[int, Range(1)] = 400
    """Train the autoencoder for this many steps."""
    unet_steps: Annotated[int, Range(1)] = 900
    """Train the UNet for this many steps."""
    batch_size: Annotated[int, Range(1)] = 16
    """Each step sees this many images."""
    learning_rate: Annotated[float, Range(0, 1, above=True)] = 8e-4
    """The highest learning rate of the UNet; that of the autoencoder is 2.5 times as high."""
    flips: Flips = "both"
    """Also train on mirrored images. Choose horizontal or none where up and down, or the sides, matter."""
    checkpoint_every: Annotated[int, Range(1)] = 100
    """Save a checkpoint after every so many steps; a kill loses at most the steps since the last one."""
    seed: int = 0
    """The seed of the weights, the noise and the order of the images."""
    device: str = "auto"
    """Compute on this device: auto (a GPU if there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check the options, say what would be read and trained, and stop."""

    def check(self) -> None:
        """UserError: options that make no sense, alone or together."""
        if (self.size is None) == (self.source is None):
            found = "neither --size nor --from" if self.size is None else "both --size and --from"
            raise UserError(f"found {found}, expected one of them; give --size tiny or --from DATASET")
        if self.size:
            self._refuse_training_options()
        multiple = 4 * self.vae_factor
        if self.image_size < multiple or self.image_size % multiple:
            raise UserError(
                f"found --image-size {self.image_size}, expected a multiple of {multiple} (4 x "
                "--vae-factor); change it"
            )
        for name, step in (("vae_width", 8), ("unet_width", 16)):
            if (value := getattr(self, name)) < step or value % step:
                raise UserError(f"found {flag(name)} {value}, expected a multiple of {step}; change it")
        check_ranges(self)
        check_window(self.window)
        check_seed(self.seed)

    def _refuse_training_options(self) -> None:
        for option in fields(self):
            if option.name not in COMMON and getattr(self, option.name) != option.default:
                raise UserError(
                    f"found {flag(option.name)} with --size, expected it only with --from; drop it"
                )

    @property
    def recorded(self) -> dict:
        """Options that decide what the base becomes, as JSON has them."""
        options = {name: value for name, value in asdict(self).items() if name not in NOT_THE_RESULT}
        return options | {"window": None if self.window is None else list(self.window)}
