"""The teacher of a distillation: which of its folds may teach, and what it says in the data set's terms."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold
from dataset_conversion.raw.held_out import unseen_cases
from dataset_conversion.system.errors import UserError
from nnunet_order.fold_ensemble import FoldEnsemble, has_one_class
from nnunet_order.model_folder import open_model_folder, trained_folds
from nnunet_order.soft_labels.files import output_names
from nnunet_order.soft_labels.record import TeacherRecord

logger = logging.getLogger(__name__)


class Teacher:
    """A trained model whose answers are labels and probabilities of a data set.

    Args:
        folder: its results folder.
        folds: those to average.

    Raises:
        UserError: as `FoldEnsemble`; a model of another task.
    """

    def __init__(self, folder: Path, folds: Sequence[str] | None, dataset: RawDataset, device: str):
        self.model = FoldEnsemble(folder, device, folds)
        self.model.check_task(dataset)
        self._values: tuple[int, int] | None = None
        if has_one_class(dataset.regions):  # which may have another name and value
            self._order = [0]
            ((theirs,),), ((ours,),) = self.model.regions.values(), dataset.regions.values()
            self._values = theirs, ours
        else:
            names = output_names(self.model.regions)
            self._order = [names.index(name) for name in output_names(dataset.regions)]

    def answer(self, image: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Image float32 (C, Z, Y, X), spacing (Z, Y, X) -> label map (Z, Y, X), probabilities (K, Z, Y, X).

        Both have the data set's values and order.
        """
        label, probabilities = self.model.predict_probabilities(image, spacing)
        if self._values is not None:
            theirs, ours = self._values
            label = np.where(label == theirs, ours, 0)
        return label, probabilities[self._order]

    @property
    def record(self) -> TeacherRecord:
        """What distillation.json says of it."""
        model = self.model
        return TeacherRecord(
            model.name, model.hash, model.train_dataset, model.train_origin, model.train_cases
        )


def folds_to_teach(folder: Path, given: Sequence[str], dataset: RawDataset, fold: Fold) -> list[str] | None:
    """The folds that teach a student of one fold of `dataset`; None for all that are trained."""
    if given:
        return list(given)
    same = open_model_folder(folder).train_origin == dataset.origin
    return [str(fold)] if same and str(fold) in trained_folds(folder) else None


def refuse_informed_teacher(teacher: FoldEnsemble, dataset: RawDataset, training: Collection[str]) -> None:
    """UserError: the teacher has learned from a validation or test case. If that is not known: a warning."""
    held_out = unseen_cases(dataset, training)
    if not held_out:
        return
    seen = teacher.train_cases
    if seen is None or teacher.train_origin != dataset.origin:
        logger.warning(
            "%s was trained on %s: make sure that it saw no validation or test case of %s",
            *(teacher.name, teacher.train_dataset, dataset.folder.name),
        )
        return
    known = {dataset.groups.get(case_id, case_id) for case_id in seen}
    if shared := [case_id for case_id in held_out if dataset.groups[case_id] in known]:
        raise UserError(
            f"{teacher.folder}: found a teacher trained on {shared[0]} or its patient ({len(shared)} such), "
            "a validation or test case, expected none: it would leak; train the teacher on the same fold, or "
            "give --teacher-folds"
        )
