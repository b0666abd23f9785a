"""The options of `law-synth generate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import SEED, Range, check_ranges

PRESETS = {"fast": ("unipc", 20), "paper": ("ddim", 50)}  # sampler and steps
MOST_SAMPLES = 1_000_000  # case ids have six digits
MOST_STEPS = 999  # of the 1000 that bases are trained on; sampling begins with the second


@dataclass(frozen=True)
class Generate:
    """Write synthetic cases with a trained mask ControlNet as an nnU-Net raw data set.

    After a training run only --out is needed. If a generation is killed, give the same command again to
    continue it. To use several processes, start it with `torchrun --nproc_per_node N -m law_synth generate
    ...` or with `accelerate launch`, or give each machine its --shard. The files are the same bytes however
    many processes write them.
    """

    out: Path
    """Folder to write: nnUNet_raw/Dataset501 or nnUNet_raw/Dataset501_NAME."""
    trained_run: Path | None = None
    """Run folder of law-synth train. The default is the newest run under $nnUNet_results/law_synth."""
    samples: Annotated[int | None, Range(1, MOST_SAMPLES)] = None
    """Number of images. The default is one per mask. A larger number uses each mask several times, with new
    noise."""
    masks: Path | None = None
    """Folder of label maps without images: pictures or volumes that hold the data set's label values (with
    one class, 0 and 255 are allowed, too). The default is the training cases' own masks. No mask may belong
    to a validation or test case or to its patient: case_00042_s0123.png and case_00042/segmentation.nii.gz
    count as masks of case_00042."""
    slices_per_mask: Annotated[int, Range(1)] = 8
    """Slices to take of each volume in --masks, evenly spaced among those with foreground."""
    mask_groups: Path | None = None
    """CSV with the columns case,group that says which patient each file in --masks belongs to. case is a
    file's name, with or without its ending. group is one of the data set's groups or cases, or another
    patient."""
    drop_held_out_masks: bool = False
    """Leave out masks of validation and test cases instead of refusing them."""
    hard_cases: Path | None = None
    """File of law-synth mine. The worse a case was segmented, the more often its mask is used, in proportion
    to (1 - Dice) + 0.1."""
    mask_augment: Literal["none", "flip", "affine", "elastic", "nested", "nested-elastic"] = "none"
    """How to vary each mask; a lesion's area stays within 10 %. nested moves, turns and reshapes lesions
    within their organ (a tumour in a kidney), so that more or less of the organ is visible. nested-elastic
    then bends the whole mask."""
    with_real: bool = False
    """Add the real cases and a splits_final.json: the fold trains on real and synthetic cases and validates
    on real ones."""
    original_size: bool | None = None
    """Write image and label at the size of the mask's source instead of the model's square size. This is the
    default for volumes, and for pictures with --with-real. False changes a volume's spacing, so that its
    extent in mm stays the same."""

    preset: Literal["fast", "paper"] = "fast"
    """fast: 20 steps of UniPC. paper: 50 steps of DDIM, eta 0."""
    sampler: Literal["ddim", "unipc", "dpm++"] | None = None
    """Sampler to use instead of the preset's."""
    steps: Annotated[int | None, Range(1, MOST_STEPS)] = None
    """Denoising steps to use instead of the preset's; 20 to 50 are usual."""
    guidance_scale: Annotated[float | None, Range(1, 1e3)] = None
    """Classifier-free guidance, with the mask in both branches. 1 turns it off, which is twice as fast. The
    default is the run's: 9 as in the paper's code, or 1 on a base of init-base."""
    prompt: str | None = None
    """Text of every image. The default is the run's."""

    segmenter: Path | None = None
    """nnU-Net model folder (.../nnUNetTrainerORDER__nnUNetPlans__2d) that looks for the lesions in each
    image. A network from another package than nnU-Net needs your trust:
    NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    min_agreement: Annotated[float, Range(0, 1)] = 0.0
    """Drop an image when the segmenter finds its lesions with a lower Dice."""
    max_similarity: Annotated[float, Range(-1, 1)] = 0.98
    """Drop an image when its 32 x 32 thumbnail correlates more than this with that of a training image; 1
    keeps all."""

    chunk_size: Annotated[int, Range(1, 10_000)] = 8
    """Images per batch. Another size changes pixels by 1 or 2 grey levels."""
    shard: str = "0/1"
    """i/n: this process does part i (counted from 0) of n. The process that finishes last completes the data
    set."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Type of the computation. The default is bf16 on a GPU (fp16 before Ampere) and fp32 on a CPU."""
    compile: bool = False
    """Compile the networks with torch.compile, which pays off for thousands of images."""
    seed: Annotated[int, SEED] = 0
    """Another seed gives other noise and other augmentations."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1."""
    dry_run: bool = False
    """Check everything, say what would be done and stop."""

    def check(self) -> None:
        """UserError: an option that makes no sense, alone or beside another."""
        check_ranges(self)
        _ = self.parsed_shard
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
                "found --hard-cases with --masks, expected only one of them: --hard-cases holds the Dice of "
                "the training cases' own masks; drop one of the two"
            )
        if self.min_agreement and self.segmenter is None:
            raise UserError(
                "found --min-agreement without --segmenter, expected the model that judges; name it"
            )

    @property
    def parsed_shard(self) -> tuple[int, int]:
        """i and n of --shard i/n. UserError: it is not of that form, or i is not below n."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not match or not int(match[1]) < int(match[2]):
            raise UserError(
                f"found --shard {self.shard}, expected i/n with i from 0 to n - 1, such as 0/4; correct it"
            )
        return int(match[1]), int(match[2])
