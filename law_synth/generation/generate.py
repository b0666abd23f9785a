"""`law-synth generate`: synthetic cases in nnU-Net raw format from a trained mask ControlNet."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed

logger = logging.getLogger(__name__)

PRESETS = {"fast": ("unipc", 20), "paper": ("ddim", 50)}  # sampler and steps
MOST = {"samples": 1_000_000, "chunk_size": 10_000}  # case ids have six digits
MOST_STEPS = 999  # of the 1000 that bases are trained on, from the second one on


@dataclass(frozen=True)
class Generate:
    """Write synthetic cases with a trained mask ControlNet as an nnU-Net raw data set.

    After a training run only --out is needed. A killed generation goes on when the same command is given
    again. Several processes: start it with `torchrun --nproc_per_node N -m law_synth generate ...`, with
    `accelerate launch`, or give each machine its --shard; the files are the same bytes.
    """

    out: Path
    """Folder to write: nnUNet_raw/Dataset501 or nnUNet_raw/Dataset501_NAME."""
    trained_run: Path | None = None
    """Run folder of law-synth train; by default the newest under $nnUNet_results/law_synth."""
    samples: int | None = None
    """Number of images; by default one per mask. More go round the masks with new noise."""
    masks: Path | None = None
    """Folder of label maps without images: pictures or volumes of the data set's label values (one class:
    also 0 and 255); by default the training cases' masks. None may be of a validation or test case, or of its
    patient: case_00042_s0123.png and case_00042/segmentation.nii.gz are taken for masks of case_00042."""
    slices_per_mask: int = 8
    """Slices to take of each volume in --masks, evenly spaced among those with foreground."""
    mask_groups: Path | None = None
    """CSV with columns case,group that says whose patient's the files in --masks are: case is a file's name,
    with or without its ending; group is one of the data set's groups or cases, or another patient."""
    drop_held_out_masks: bool = False
    """Leave out masks of validation and test cases instead of refusing them."""
    hard_cases: Path | None = None
    """File of law-synth mine: masks are drawn more often the worse their case was segmented, in proportion to
    (1 - Dice) + 0.1."""
    mask_augment: Literal["none", "flip", "affine", "elastic", "nested", "nested-elastic"] = "none"
    """Vary each mask; a lesion's area stays within 10 %. nested: move, turn and reshape lesions within their
    organ (tumour in kidney), of which more or less is seen; nested-elastic bends the whole, too."""
    with_real: bool = False
    """Add the real cases, and splits_final.json: the fold trains on real and synthetic, validates on real."""
    original_size: bool | None = None
    """Write image and label at the size of the mask's source instead of the model's (square); by default for
    volumes, and for pictures with --with-real. False scales a volume's spacing: its extent in mm stays."""

    preset: Literal["fast", "paper"] = "fast"
    """fast: 20 steps of UniPC. paper: 50 steps of DDIM, eta 0."""
    sampler: Literal["ddim", "unipc", "dpm++"] | None = None
    """By default as --preset."""
    steps: int | None = None
    """Denoising steps; by default as --preset."""
    guidance_scale: float | None = None
    """Classifier-free guidance, the mask in both branches; 1 for none (twice as fast). By default the
    run's: 9 as in the paper's code, 1 on a base of init-base."""
    prompt: str | None = None
    """By default the run's."""

    segmenter: Path | None = None
    """nnU-Net model folder (.../nnUNetTrainerORDER__nnUNetPlans__2d) that looks for the lesions. Networks of
    other packages than nnU-Net's want your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    min_agreement: float = 0.0
    """Drop images whose lesion the segmenter finds with a lower Dice."""
    max_similarity: float = 0.98
    """Drop images whose 32 x 32 thumbnail correlates more than this with a training image's; 1 keeps all."""

    chunk_size: int = 8
    """Images per batch. Another size changes pixels by 1 or 2 grey levels."""
    shard: str = "0/1"
    """i/n: this process does part i (from 0) of n; the last one to finish completes the data set."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """By default bf16 on a GPU (fp16 on those before Ampere) and fp32 on a CPU."""
    compile: bool = False
    """torch.compile the networks: worth its minute for thousands of images."""
    seed: int = 0
    """Another seed gives other noise and other augmentations."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check everything, say what would be done and stop."""

    def check(self) -> tuple[int, int]:
        """Part and number of parts of --shard. UserError: options that make no sense."""
        for name in ("samples", "steps", "chunk_size", "slices_per_mask"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"found --{name.replace('_', '-')} {value}, expected at least 1")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise UserError(f"found --{name.replace('_', '-')} {value}, expected at most {most}")
        check_seed(self.seed)
        if self.steps is not None and self.steps > MOST_STEPS:
            raise UserError(f"found --steps {self.steps}, expected at most {MOST_STEPS}; 20 to 50 are usual")
        if self.guidance_scale is not None and not 1 <= self.guidance_scale < math.inf:
            raise UserError(f"found --guidance-scale {self.guidance_scale}, expected 1 (none) or more")
        if not 0 <= self.min_agreement <= 1 or not -1 <= self.max_similarity <= 1:
            raise UserError(
                f"found --min-agreement {self.min_agreement} and --max-similarity {self.max_similarity}, "
                "expected 0 to 1 (Dice) and -1 to 1 (correlation)"
            )
        if self.masks is None and (self.mask_groups is not None or self.drop_held_out_masks):
            raise UserError(
                "found --mask-groups or --drop-held-out-masks without --masks, expected the folder of masks; "
                "name it"
            )
        if self.masks is None and self.slices_per_mask != type(self).slices_per_mask:
            raise UserError(
                "found --slices-per-mask without --masks, expected volumes of masks to take slices from; "
                "drop it"
            )
        if self.hard_cases is not None and self.masks is not None:
            raise UserError(
                "found --hard-cases with --masks, expected the training cases' masks, whose Dice it holds; "
                "drop one of the two"
            )
        if self.min_agreement and self.segmenter is None:
            raise UserError(
                "found --min-agreement without --segmenter, expected the model that judges; name it"
            )
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise UserError(f"found --shard {self.shard}, expected i/n with i from 0 to n - 1, such as 0/4")
        return int(match[1]), int(match[2])

    def run(self) -> None:
        from dataset_conversion.system.provenance import require

        part, parts = self.check()
        require("synth", "diffusers", "transformers", "accelerate")
        from law_synth.generation.chunks import generate

        generate(self, part, parts)
