"""The options of `nnunet-order distill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dataset_conversion.images import SIDE
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.options import check_ranges


@dataclass(frozen=True)
class Distill:
    """Write a raw data set whose images have a teacher's soft labels, for training a small network on it.

    The data set holds the cases of one fold and your unlabelled images. The teacher outlines the unlabelled
    images, and its probabilities for every training image become soft labels. All trainers of this package
    use them: plan and preprocess the data set, then run nnUNetv2_train with one of them. Other trainers learn
    from the teacher's outlines alone. A killed run continues when you give the same command again.
    """

    dataset: str
    """Raw data set with the labelled cases: its id, its name DatasetXXX_NAME, or its folder."""
    teacher: Path
    """Results folder of a trained nnU-Net model, <trainer>__<plans>__2d. It may have any trainer."""
    out: Path
    """Folder to write; its name has the form DatasetXXX_NAME."""
    unlabelled: tuple[Path, ...] = ()
    """Folders of images without outlines. They hold pictures, or files with nnU-Net's names, such as
    case_0000.nii.gz. No image may belong to a validation or test case or to its patient."""
    unlabelled_groups: Path | None = None
    """CSV with the columns case,group that says which patient or video each unlabelled image belongs to. case
    is a file's name without its ending. group is one of the data set's groups or cases, or another one."""
    drop_held_out: bool = False
    """Leave out unlabelled images of validation and test cases instead of refusing them."""
    fold: str = "0"
    """The fold whose training cases the student learns from: a number, or all for every training case. The
    new data set has this one fold. A number becomes its fold 0."""
    teacher_folds: tuple[str, ...] = ()
    """The teacher's folds to average. The default is --fold alone if the teacher was trained on this data set
    and has that fold, and all of its folds otherwise."""
    max_side: Annotated[int | None, SIDE] = None
    """Unlabelled pictures whose longer side has more pixels than this are shrunk to it. The default is what
    dataset.json records of the data set's own images."""
    device: str = "auto"
    """cuda, cpu, or auto, which is CUDA where PyTorch sees a GPU."""

    def check(self) -> None:
        """UserError: options that are impossible alone or together."""
        check_ranges(self)
        for name, folds in (("--fold", (self.fold,)), ("--teacher-folds", self.teacher_folds)):
            if wrong := [fold for fold in folds if fold != "all" and not fold.isdecimal()]:
                raise UserError(f"found {name} {wrong[0]}, expected a number from 0 or all; correct it")
        given = self.unlabelled_groups is not None or self.drop_held_out or self.max_side is not None
        if given and not self.unlabelled:
            raise UserError(
                "found --unlabelled-groups, --drop-held-out or --max-side without --unlabelled, expected the "
                "folder of images; give it or leave them out"
            )
