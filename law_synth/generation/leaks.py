"""What keeps validation and test cases out of synthetic training data."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataset_conversion.raw import RawDataset, find_dataset
from dataset_conversion.user_error import UserError
from law_synth.cases import Fold, fold_cases, resize_mask
from law_synth.generation.masks import MaskSource, case_mask, mask_hash

if TYPE_CHECKING:
    from law_synth.evaluation.segmenter import Segmenter
    from law_synth.run_folder import TrainedRun

logger = logging.getLogger(__name__)


def refuse_leaks(
    run: TrainedRun,
    dataset: RawDataset,
    sources: Sequence[MaskSource],
    segmenter: Segmenter | None = None,
) -> None:
    """UserError unless model, masks and judge saw nothing but training cases of the run's fold.

    A mask from elsewhere must not have the name, nor at model size the pixels, of a validation or test case.
    Empty and full masks say nothing and are never copies. A judge's cases are known only for the same data
    set; otherwise a warning asks the user.
    """
    _refuse_changed_splits(run, dataset)
    seen = set(run.train_cases)
    unseen = {case.id: case for case in (*dataset.training_cases, *dataset.test_cases) if case.id not in seen}
    for source in sources:
        name = source.case or source.name.rsplit(".", 1)[0]
        if name in unseen:
            raise UserError(
                f"found the mask {source.name} of a case outside the training cases of fold {run.fold} of "
                f"{dataset.folder.name}, expected none: it would leak; remove it"
            )
    if any(source.case != source.name for source in sources):
        labelled = [case for case in unseen.values() if case.label is not None]
        hashes = {mask_hash(resize_mask(case_mask(dataset, case), run.size)): case.id for case in labelled}
        for source in sources:
            mask = resize_mask(source.read(), run.size)
            copied = hashes.get(mask_hash(mask))
            if copied is not None and 0 < mask.mean() < 1:
                raise UserError(
                    f"found the mask {source.name} equal to that of {copied}, a validation or test case of "
                    f"{dataset.folder.name}, expected none: it would leak; remove it"
                )
    if segmenter is not None:
        refuse_informed_judge(dataset, run.fold, segmenter)


def _refuse_changed_splits(run: TrainedRun, dataset: RawDataset) -> None:
    """UserError unless the fold's training cases are still those that the run has seen."""
    now, seen = set(fold_cases(dataset, run.fold)[0]), set(run.train_cases)
    if now != seen:
        example = min(seen - now) if seen - now else min(now - seen)
        raise UserError(
            f"{run.folder}: found {len(seen)} training cases of fold {run.fold}, expected the {len(now)} of "
            f"{dataset.folder.name} as it is now (they differ in {example}, for example); restore the splits "
            "or train again"
        )


def refuse_informed_judge(dataset: RawDataset, fold: Fold, segmenter: Segmenter) -> None:
    """UserError when the judge is known to have learned from validation cases of a fold.

    Where its cases are not known a warning asks the user.
    """
    validation = set(fold_cases(dataset, fold)[1])
    if not validation:
        return
    seen = cases_behind_judge(dataset, segmenter)
    if seen is None:
        logger.warning(
            "%s was trained on %s: make sure that it saw no validation case of fold %s of %s",
            segmenter.name,
            segmenter.train_dataset,
            fold,
            dataset.folder.name,
        )
    elif shared := sorted(validation & seen):
        raise UserError(
            f"{segmenter.folder}: found a judge trained on {shared[0]} ({len(shared)} such), a "
            f"validation case of fold {fold}, expected none: it would leak; train its fold {fold}"
        )


def cases_behind_judge(dataset: RawDataset, segmenter: Segmenter) -> set[str] | None:
    """The cases of `dataset` that a judge has learned from; None where they are not known.

    A judge of a synthetic data set made from `dataset` knows the real cases in it, and through the synthetic
    ones those of the run that made them.
    """
    name, seen = dataset.folder.resolve().name, segmenter.train_cases
    if seen is None or segmenter.train_dataset == name:
        return None if seen is None else set(seen)
    try:
        path = find_dataset(segmenter.train_dataset).folder / "synthesis.json"
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["source_dataset"]["name"] != name:
            return None
        behind = {*record["run"]["train_cases"], *record["run"]["monitor_cases"]}
    except (UserError, OSError, ValueError, KeyError, TypeError):  # not here, or no synthetic data set
        return None
    return behind | ({case.id for case in dataset.training_cases} & set(seen))
