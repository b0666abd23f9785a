"""The options of `law-synth evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import SEED, Range, check_ranges


@dataclass(frozen=True)
class Evaluate:
    """Measure a synthetic data set against the real one: realism, agreement with the masks, copying.

    Writes evaluation.json, per_case.csv, grid.png and, with --segmenter, agreement.png. It works without a
    network; FID and KID then need --inception. Features of the real images are kept for the next run. Volumes
    are compared by their 2D slices. With several classes, agreement and contrast are measured for each class,
    too.
    """

    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional]
    """Synthetic data set: id, DatasetXXX_NAME or folder. Real cases in it (--with-real) are left out."""
    real: str | None = None
    """Real data set. The default is the one that synthesis.json names."""
    segmenter: Path | None = None
    """nnU-Net model folder (.../<trainer>__<plans>__2d) that judges whether images follow their masks. It
    must know the data set's labels. Of a model of the real data set, only the fold of the synthetic cases
    judges. A network from another package than nnU-Net needs your trust:
    NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    inception: Path | None = None
    """Weights for FID and KID, weights-inception-2015-12-05-6726825d.pth. By default they are downloaded."""
    clip_model: str = "ViT-B-32"
    """open_clip's name of the CLIP model."""
    clip_pretrained: Path | None = None
    """Weights file of the CLIP model, or a folder that open_clip reads as local-dir. Without it there is no
    CLIP-I."""
    reference: Literal["train", "held-out", "both"] = "both"
    """Real images to compare with: those that the model saw, the fold's validation cases, or both (where
    there are validation cases). Copies are always looked for among the images that the model saw."""
    out: Path | None = None
    """Folder for the results. The default is `evaluation` in the synthetic data set."""
    seed: Annotated[int, SEED] = 0
    """Seed of the shuffled masks, the random halves and the bootstrap."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1."""
    batch_size: Annotated[int, Range(1)] = 32
    """Images that go through a network at a time."""
    dry_run: bool = False
    """Check the data, say what would be measured and stop."""

    def check(self) -> None:
        """UserError: an option that makes no sense, alone or beside another."""
        check_ranges(self)
        if self.clip_pretrained is None and self.clip_model != type(self).clip_model:
            raise UserError("found --clip-model without --clip-pretrained, expected its weights; name them")
