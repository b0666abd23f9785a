"""A trained nnU-Net model as a judge: which pixels of an image does it take for which class?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError
from law_synth.view.places import Geometry
from law_synth.view.slices import Slice, SliceView
from nnunet_order.fold_ensemble import FoldEnsemble
from nnunet_order.model_folder import CHECKPOINT, open_model_folder

if TYPE_CHECKING:
    import torch


class Segmenter(FoldEnsemble):
    """A `FoldEnsemble` that judges single images: `find` and `find_slice` give the mask of one."""

    def find(self, view: SliceView, image: np.ndarray, geometry: Geometry | None) -> np.ndarray:
        """Image (Y, X, 3) of values in [0, 255] -> mask of class numbers uint8 (Y, X).

        The model sees it in the data set's own units and type. UserError: as `predict`; a model that was
        trained on slices along another axis.
        """
        return self._find(view, view.window.from_rgb(image), geometry)

    def find_slice(self, view: SliceView, slice_: Slice) -> np.ndarray:
        """As `find`, of an image as it is stored, with what lies outside the view's window."""
        return self._find(view, view.read_pixels(slice_), view.geometry(slice_))

    def _find(self, view: SliceView, pixels: np.ndarray, geometry: Geometry | None) -> np.ndarray:
        axis = self.model.plans.transpose_forward[0]
        if view.is_volumetric and axis != view.axis:
            raise UserError(
                f"{self.folder}: found a model of slices along axis {axis} of (Z, Y, X), expected "
                f"{view.axis} as in {view.dataset.folder.name}; judge with a model of that data set"
            )
        label = view.as_slice(self.predict(view.as_volume(pixels), view.spacing(geometry)))
        if view.classes.count == 1:
            ((lesion,),) = self.regions.values()
            return (label == lesion).astype(np.uint8)
        return view.classes.numbers(label)


def load_judge(
    folder: Path, device: torch.device | str, folds: Sequence[int | str] | None, dataset: RawDataset
) -> Segmenter:
    """A segmenter that knows the classes of `dataset`, so that hours of work do not end in an error.

    The names and values of its labels and regions are those of the data set; a single class may have any.
    UserError: as `Segmenter`; other labels, other channels.
    """
    segmenter = Segmenter(folder, str(device), folds)
    segmenter.check_task(dataset)
    return segmenter


def judge_of_fold(
    folder: Path, device: torch.device | str, fold: Fold | None, dataset: RawDataset
) -> Segmenter:
    """As `load_judge`: of a model of `dataset` its fold `fold` alone, where it is there, else all folds."""
    own = (folder / f"fold_{fold}" / CHECKPOINT).is_file() and _is_model_of(folder, dataset)
    return load_judge(folder, device, [fold] if own else None, dataset)


def _is_model_of(folder: Path, dataset: RawDataset) -> bool:
    return open_model_folder(folder).train_origin == dataset.origin
