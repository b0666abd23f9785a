"""The options of `law-synth audit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dataset_conversion.system.options import Range, check_ranges
from law_synth.generation.options import Generate


@dataclass(frozen=True)
class Audit:
    """Check a finished synthetic data set for leaks of validation and test cases; it is only read.

    Everything that can be computed again is computed again: whose masks were used; what the model, its base
    and the judge learned from; every file; the splits; copies of held-out images and masks. Of volumes, each
    slice with foreground is looked at, or each slice where there is no label. Network features of the real
    images are kept for the next run, by their pixels.

    Exit code 0: the data set is clean. 1: there is a leak, a file is not as it was generated, or a check was
    not possible (unless --allow-unchecked accepts that). 2: this is no synthetic data set.
    """

    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional]
    """Synthetic data set: id, DatasetXXX_NAME or folder."""
    real: str | None = None
    """Real data set that it was made from. The default is the one that synthesis.json names."""
    trained_run: Path | None = None
    """Run folder of law-synth train. By default it is looked for by its weights, under
    $nnUNet_results/law_synth."""
    base: Path | None = None
    """Folder of the run's base model. The default is where the run had it."""
    segmenter: tuple[Path, ...] = ()
    """nnU-Net model folders of the judges: the --segmenter of generate, and that of mine. Only their sha256
    is recorded, not where they lie. A network from another package than nnU-Net needs your trust:
    NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    max_similarity: Annotated[float, Range(-1, 1)] = Generate.max_similarity
    """A synthetic image is a copy if its similarity to a validation or test image is above this and above its
    similarity to every training image. Similarity is the correlation of 32 x 32 thumbnails and the cosine of
    EfficientNet-Lite0 features, also of mirrored images."""
    allow_unchecked: bool = False
    """Accept checks that are not possible; the report still names them."""
    out: Path | None = None
    """JSON file for the results, outside of the data set."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1."""
    batch_size: Annotated[int, Range(1)] = 32
    """Images that go through a network at a time."""
    dry_run: bool = False
    """Find the data sets, say what would be checked and stop."""

    def check(self) -> None:
        """UserError: a number outside of its range."""
        check_ranges(self)
