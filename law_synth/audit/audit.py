"""The verb `audit`: check a finished synthetic data set for leaks, from what it holds and from its source."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dataset_conversion.user_error import UserError, check_writable
from law_synth.generation.generate import Generate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """Check a finished synthetic data set for leaks of validation and test cases; it is only read.

    Everything that can be computed again is: whose masks were used, what the model, its base and the judge
    learned from, every file, the splits, and copies of held-out images and masks (of volumes: of each slice
    with foreground, or of all where there is no label). Network features of the real images are kept for the
    next run, by their pixels. Exit code 0: clean. 1: a leak, files that are not
    those that were generated, or a check that was not possible (without --allow-unchecked): what cannot be
    checked is not clean. 2: no synthetic data set.
    """

    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional]
    """Synthetic data set: id, DatasetXXX_NAME or folder."""
    real: str | None = None
    """Real data set that it was made from; default: the one that synthesis.json names."""
    trained_run: Path | None = None
    """Run folder of law-synth train; default: looked for under $nnUNet_results/law_synth by its weights."""
    base: Path | None = None
    """Folder of the run's base model; default: where the run had it."""
    segmenter: tuple[Path, ...] = ()
    """nnU-Net model folders of the judges: generate's --segmenter, and mine's. Their place is not recorded,
    only their sha256. Networks of other packages than nnU-Net's want your trust:
    NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    max_similarity: float = Generate.max_similarity
    """More than this like a validation or test image, and more than like any training image, is a copy: by
    correlation of 32 x 32 thumbnails and by cosine of EfficientNet-Lite0 features, mirrored too."""
    allow_unchecked: bool = False
    """Let checks pass that are not possible; they are named all the same."""
    out: Path | None = None
    """JSON file for the results, outside of the data set."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    batch_size: int = 32
    """Images that go through a network at a time."""
    dry_run: bool = False
    """Find the data sets, say what would be checked and stop."""

    def run(self) -> None:
        """Check, print, exit with 1 when it is not clean. UserError: no synthetic data set, bad options."""
        from law_synth.audit.checks import run_checks
        from law_synth.audit.report import print_report, write_report
        from law_synth.audit.subject import read_subject
        from law_synth.devices import pick_device

        self._check()
        pick_device(self.device)
        subject = read_subject(self)
        self._check_out(subject.dataset.folder)
        real = "no source data set" if subject.source is None else subject.source.folder
        logger.info("%d samples of %s, made from %s", len(subject.rows), subject.dataset.folder, real)
        if subject.view.is_volumetric:
            logger.info("they are volumes of one slice; real volumes are looked at slice by slice")
        if self.dry_run:
            return
        checks = run_checks(subject, self)
        clean = all(check.passed or (self.allow_unchecked and not check.findings) for check in checks)
        print_report(subject, checks, clean)
        if self.out is not None:
            write_report(self, subject, checks, clean)
        if not clean:
            sys.exit(1)

    def _check(self) -> None:
        if not -1 <= self.max_similarity <= 1 or self.batch_size < 1:
            raise UserError(
                f"found --max-similarity {self.max_similarity} and --batch-size {self.batch_size}, expected "
                "-1 to 1 and at least 1"
            )

    def _check_out(self, folder: Path) -> None:
        """UserError: --out lies in the data set, or is another file."""
        if self.out is None:
            return
        if self.out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{self.out}: found a file in the data set, expected one outside; correct --out")
        check_writable(self.out)
        if not self.out.exists():
            return
        try:
            known = "checks" in json.loads(self.out.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            known = False
        if not known:
            raise UserError(f"{self.out}: found something else, expected no file; choose another --out")
