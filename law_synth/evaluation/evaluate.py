"""The verb `evaluate`: how real do synthetic cases look, do they follow their masks, are they copies?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_seed

if TYPE_CHECKING:
    from law_synth.evaluation.image_sets import Subject

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluate:
    """Measure a synthetic data set against the real one: realism, obedience to the masks, copying.

    Writes evaluation.json, per_case.csv, grid.png and, with --segmenter, agreement.png. Works without a
    network: FID and KID then need --inception. Features of the real images are kept for the next run. Of
    volumes, 2D slices are compared; of several classes, masks and contrast are measured for each, too.
    """

    dataset: Annotated[str, tyro.conf.arg(metavar="DATASET"), tyro.conf.Positional]
    """Synthetic data set: id, DatasetXXX_NAME or folder; real cases in it (--with-real) are left out."""
    real: str | None = None
    """Real data set; default: the one that synthesis.json names."""
    segmenter: Path | None = None
    """nnU-Net model folder (.../<trainer>__<plans>__2d) judging whether images follow their masks; it knows
    the data set's labels. Of a model of the real data set only the synthetic cases' own fold judges.
    Networks of other packages than nnU-Net's want your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    inception: Path | None = None
    """Weights for FID and KID, weights-inception-2015-12-05-6726825d.pth; default: download them."""
    clip_model: str = "ViT-B-32"
    """open_clip's name of the CLIP model."""
    clip_pretrained: Path | None = None
    """Weights file of the CLIP model, or a folder that open_clip reads as local-dir; without it no CLIP-I."""
    reference: Literal["train", "held-out", "both"] = "both"
    """Real images to compare with: those the model saw, the fold's validation cases, or both (where there are
    any). Copies are always looked for among those it saw."""
    out: Path | None = None
    """Folder for the results; default: `evaluation` in the synthetic data set."""
    seed: int = 0
    """Of shuffled masks, halves and the bootstrap."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    batch_size: int = 32
    """Images that go through a network at a time."""
    dry_run: bool = False
    """Check the data, say what would be measured and stop."""

    def run(self) -> None:
        from dataset_conversion.system.folders import check_report_folder
        from law_synth.devices import pick_device
        from law_synth.evaluation.image_sets import read_subject
        from law_synth.evaluation.output import FILES, print_tables, write_report
        from law_synth.evaluation.per_image import find
        from law_synth.evaluation.set_measures import measure_all

        check_seed(self.seed)
        if self.batch_size < 1:
            raise UserError(f"found --batch-size {self.batch_size}, expected 1 or more")
        if self.clip_pretrained is None and self.clip_model != type(self).clip_model:
            raise UserError("found --clip-model without --clip-pretrained, expected its weights; name them")
        subject = read_subject(self.dataset, self.real)
        wanted = self._references(subject)
        out = self.out or subject.synthetic.dataset.folder / "evaluation"
        check_report_folder(out, FILES)
        pick_device(self.device)
        for images in (subject.synthetic, *subject.references.values()):
            if images.view.is_volumetric:
                logger.info("%s", "; ".join(images.seen_as))
        if self.segmenter is not None and (channels := subject.synthetic.view.normalized_by_case):
            logger.warning(
                "channels %s: the judge has learned from slices scaled by their volume and sees each one "
                "scaled by itself, so agreement is too low, of real slices, too",
                ", ".join(channels),
            )
        if self.dry_run:
            self._announce(subject, wanted, out)
            return
        findings = find(self, subject, wanted)
        measures = measure_all(findings, self.seed)
        write_report(findings, measures, asdict(self), out)
        print_tables(findings, measures, out)

    def _announce(self, subject: Subject, wanted: Sequence[str], out: Path) -> None:
        from law_synth.evaluation.per_image import left_out
        from law_synth.judging.segmenter import judge_of_fold

        if self.segmenter is not None:
            judge = judge_of_fold(self.segmenter, "cpu", subject.fold, subject.real)
            logger.info("the judge is %s", judge.name)
        real = ", ".join(f"{name} ({len(subject.references[name])} images)" for name in wanted)
        logger.info(
            "would compare %d synthetic images of %s with %s of %s, look for copies among the %d that the "
            "model saw, and write %s",
            *(len(subject.synthetic), subject.synthetic.dataset.name, real),
            *(subject.real.name, len(subject.references["train"]), out),
        )
        for measure, reason in left_out(self, subject).items():
            logger.info("no %s: %s", measure, reason)

    def _references(self, subject: Subject) -> tuple[str, ...]:
        if self.reference == "held-out" and "held-out" not in subject.references:
            fold = "unknown" if subject.fold is None else subject.fold
            raise UserError(
                f"{subject.synthetic.dataset.folder}: found no held-out cases (fold {fold}), expected some; "
                "give --reference train"
            )
        return tuple(name for name in subject.references if self.reference in (name, "both"))
