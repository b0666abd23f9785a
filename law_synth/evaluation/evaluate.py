"""`law-synth evaluate`: how real do synthetic cases look, do they follow their masks, are they copies?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import check_report_folder
from law_synth.evaluation.all_metrics import measure_all
from law_synth.evaluation.image_sets import ComparedSets, read_compared_sets
from law_synth.evaluation.options import Evaluate
from law_synth.evaluation.output import FILES, print_tables, write_report
from law_synth.evaluation.per_image import measure_images, missing_metrics
from law_synth.judging.segmenter import judge_of_fold
from nnunet_order.devices import pick_device

logger = logging.getLogger(__name__)


def evaluate(options: Evaluate) -> None:
    """Measure and write the report. UserError: bad options, data sets or models that cannot be used."""
    options.check()
    sets = read_compared_sets(options.dataset, options.real)
    references = _references(options, sets)
    out = options.out or sets.synthetic.dataset.folder / "evaluation"
    check_report_folder(out, FILES)
    pick_device(options.device)
    _explain_views(options, sets)
    if options.dry_run:
        _announce(options, sets, references, out)
        return
    results = measure_images(options, sets, references)
    measurements = measure_all(results, options.seed)
    write_report(results, measurements, asdict(options), out)
    print_tables(results, measurements, out)


def _references(options: Evaluate, sets: ComparedSets) -> tuple[str, ...]:
    """Names of the real sets to compare with. UserError: held-out cases are asked for, and there are none."""
    if options.reference == "held-out" and "held-out" not in sets.references:
        fold = "unknown" if sets.fold is None else sets.fold
        raise UserError(
            f"{sets.synthetic.dataset.folder}: found no held-out cases (fold {fold}), expected some; "
            "give --reference train"
        )
    return tuple(name for name in sets.references if options.reference in (name, "both"))


def _explain_views(options: Evaluate, sets: ComparedSets) -> None:
    """Log how volumes become images, and where the judge sees them otherwise than in its training."""
    for images in (sets.synthetic, *sets.references.values()):
        if images.view.is_volumetric:
            logger.info("%s", "; ".join(images.seen_as))
    if options.segmenter is not None and (channels := sets.synthetic.view.normalized_by_case):
        logger.warning(
            "channels %s: the judge learned from slices scaled by their volume, but sees each slice "
            "scaled by itself, so agreement is too low, also that of real slices",
            ", ".join(channels),
        )


def _announce(options: Evaluate, sets: ComparedSets, references: Sequence[str], out: Path) -> None:
    """Log what would be measured."""
    if options.segmenter is not None:
        judge = judge_of_fold(options.segmenter, "cpu", sets.fold, sets.real)
        logger.info("the judge is %s", judge.name)
    real = ", ".join(f"{name} ({len(sets.references[name])} images)" for name in references)
    logger.info(
        "would compare %d synthetic images of %s with %s of %s, look for copies among the %d that the "
        "model saw, and write %s",
        *(len(sets.synthetic), sets.synthetic.dataset.name, real),
        *(sets.real.name, len(sets.references["train"]), out),
    )
    for metric, reason in missing_metrics(options, sets).items():
        logger.info("no %s: %s", metric, reason)
