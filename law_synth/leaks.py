"""What keeps validation and test cases out of synthetic training data."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from rich.progress import track

from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import Fold, fold_cases, leak_free_fold
from dataset_conversion.raw.held_out import group_by_name, held_out_groups, unseen_cases
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.names import match_key
from law_synth.judging.segmenter import Segmenter
from law_synth.records.base import read_base_config
from law_synth.records.run import TrainedRun
from law_synth.records.synthetic import read_synthesis
from law_synth.view.mask_sources import MaskSource, mask_hash, mask_stem
from law_synth.view.resize import resize_mask
from law_synth.view.slices import SliceView

logger = logging.getLogger(__name__)

MANY = 200  # masks that deserve a progress bar


def refuse_leaks(run: TrainedRun, dataset: RawDataset, segmenter: Segmenter | None = None) -> None:
    """UserError unless model and judge saw nothing but training cases of the run's fold, and it keeps groups.

    A judge's cases are known only for the same data set, the whole or a subset; otherwise a warning asks.
    """
    _refuse_changed_splits(run, dataset)
    if segmenter is not None:
        refuse_informed_judge(dataset, run.fold, segmenter)


class HeldOutMasks:
    """Finds out which masks from elsewhere belong to a validation or test case of a run's fold.

    Args:
        mask_groups: the group of masks by file name or stem, where their names do not tell.
    """

    def __init__(self, run: TrainedRun, view: SliceView, mask_groups: Mapping[str, str]):
        self.run, self.dataset = run, view.dataset
        self._given = {match_key(name): group for name, group in mask_groups.items()}
        self._training = set(run.train_cases)
        self._unseen = unseen_cases(self.dataset, self._training)
        self._unseen_keys = set(map(match_key, self._unseen))
        self._groups = held_out_groups(self.dataset, self._training)
        self._hashes = self._held_out_hashes(view)

    def taken_out(self, sources: Sequence[MaskSource], drop: bool) -> list[MaskSource]:
        """The masks that may train the fold, with their groups; where one is not known, with a warning.

        UserError: a held-out one and not `drop`, or nothing is left.
        """
        reasons = [self._reason(source) for source in sources]
        held_out = [i for i, reason in enumerate(reasons) if reason is not None]
        if held_out and not drop:
            raise UserError(
                f"found the mask {sources[held_out[0]].name} {reasons[held_out[0]]} ({len(held_out)} such), "
                "expected none: it would leak; remove them or give --drop-held-out-masks"
            )
        kept = [source for source, reason in zip(sources, reasons, strict=True) if reason is None]
        if not kept:
            raise UserError(f"found {len(sources)} masks, all of validation or test cases; give others")
        if held_out:
            logger.info("left out %d of %d masks, of validation or test cases", len(held_out), len(sources))
        if unknown := sum(self._group(source) is None for source in kept):
            logger.warning(
                "%d of %d masks are named after no case or group of %s: make sure that none is of a patient "
                "of its validation or test cases; --mask-groups says whose they are",
                *(unknown, len(kept), self.dataset.folder.name),
            )
        return [replace(source, group=self._group(source) or source.group) for source in kept]

    def _held_out_hashes(self, view: SliceView) -> dict[str, str]:
        """sha256 at model size -> case of each held-out mask that is not of a single class."""
        labelled = [case.id for case in self._unseen.values() if case.label is not None]
        quick = not view.is_volumetric and len(labelled) < MANY
        hashes = {}
        for case_id in track(labelled, "reading held-out masks", transient=True, disable=quick):
            for slice_ in view.slices([case_id]):
                mask = resize_mask(view.read_mask(slice_), self.run.size)
                if np.ptp(mask):
                    hashes[mask_hash(mask)] = case_id
        return hashes

    def _reason(self, source: MaskSource) -> str | None:
        """What makes a mask a held-out one."""
        case, group = self._hashes.get(source.sha256_at_size), self._group(source)
        name = self.dataset.folder.name
        if match_key(mask_stem(source.name)) in self._unseen_keys:
            return f"of a case outside the training cases of fold {self.run.fold} of {name}"
        if case is not None:
            return f"equal to that of {case}, a validation or test case of {name}"
        if group in self._groups and source.case not in self._training:
            return f"of {group}, whose case {self._groups[group]} is a validation or test case of {name}"
        return None

    def _group(self, source: MaskSource) -> str | None:
        names = (source.name, mask_stem(source.name))
        given = next((self._given[key] for key in map(match_key, names) if key in self._given), None)
        by_name = group_by_name(source.name, self.dataset, self._groups)
        if by_name in self._groups or given is None:
            return by_name
        return self.dataset.groups_by_key.get(match_key(given), given)


def _refuse_changed_splits(run: TrainedRun, dataset: RawDataset) -> None:
    """UserError unless the fold's training cases are still those that the run has seen."""
    now, seen = set(leak_free_fold(dataset, run.fold)[0]), set(run.train_cases)
    if now != seen:
        example = min(seen - now) if seen - now else min(now - seen)
        raise UserError(
            f"{run.folder}: found {len(seen)} training cases of fold {run.fold}, expected the {len(now)} of "
            f"{dataset.folder.name} as it is now (they differ in {example}, for example); restore the splits "
            "or train again"
        )


def refuse_informed_judge(dataset: RawDataset, fold: Fold, segmenter: Segmenter) -> None:
    """UserError when the judge is known to have learned from validation or test cases of a fold.

    Where its cases are not known a warning asks the user.
    """
    held_out = set(unseen_cases(dataset, fold_cases(dataset, fold)[0]))
    if not held_out:
        return
    seen = cases_behind_judge(dataset, segmenter)
    if seen is None:
        logger.warning(
            "%s was trained on %s: make sure that it saw no validation or test case of fold %s of %s",
            segmenter.name,
            segmenter.train_dataset,
            fold,
            dataset.folder.name,
        )
    elif shared := sorted(held_out & seen):
        raise UserError(
            f"{segmenter.folder}: found a judge trained on {shared[0]} ({len(shared)} such), a "
            f"validation or test case of fold {fold}, expected none: it would leak; train its fold {fold}"
        )


def cases_behind_judge(dataset: RawDataset, segmenter: Segmenter) -> set[str] | None:
    """The cases of `dataset` that a judge has learned from; None where they are not known.

    A judge of a synthetic data set made from `dataset` knows the real cases in it, and through the synthetic
    ones those of the run that made them.
    """
    seen = segmenter.train_cases
    if seen is None or segmenter.train_origin == dataset.origin:
        return None if seen is None else set(seen)
    try:
        made = read_synthesis(find_dataset(segmenter.train_origin).folder)
    except UserError:  # not here, or no synthetic data set
        return None
    if made.source_dataset.known_origin != dataset.origin:
        return None
    return set(made.run.seen_cases) | ({case.id for case in dataset.training_cases} & set(seen))


def cases_behind_base(source: str, origin: str) -> set[str] | None:
    """The cases of a data set (its `RawDataset.origin`) that a base has learned from; None where unknown.

    An empty set for random weights, and for a base that law-synth has not made. UserError: a damaged record.

    Args:
        source: the base's folder or hub id.
    """
    config = read_base_config(source)
    if config is None or config.train_cases is None:
        return set()
    return set(config.train_cases) if config.origin == origin else None


def refuse_informed_base(
    source: str, dataset: RawDataset, training: Collection[str], expected: str, remedy: str
) -> None:
    """UserError: a base that is known to have learned from other cases of `dataset` than these.

    Args:
        expected: what `training` are, for the message.
    """
    if others := sorted((cases_behind_base(source, dataset.origin) or set()).difference(training)):
        raise UserError(
            f"{source}: found a base trained on {others[0]} ({len(others)} such), expected only {expected}; "
            f"{remedy}"
        )
