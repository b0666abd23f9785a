"""Soft labels as nnU-Net's data loader wants them: cropped, turned and resampled as preprocessing did.

They are further channels of a case's preprocessed segmentation. nnU-Net's own preprocessed files stay as they
are; those with soft labels lie in a folder beside them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import blosc2
import numpy as np

from dataset_conversion.raw.dataset import nnunet_folder
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.parallel import in_parallel
from nnunet_order.soft_labels.files import FOLDER, read_soft_label, soft_label_path

if TYPE_CHECKING:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


@dataclass(frozen=True)
class WithSoftLabels:
    """nnU-Net's data set of preprocessed cases, whose segmentations have soft labels as further channels."""

    dataset: nnUNetBaseDataset
    folder: Path
    """Of the segmentations with soft labels; `prepare_soft_labels` fills it."""

    @property
    def identifiers(self) -> list[str]:
        """Case ids, as nnU-Net's data loader asks for them."""
        return self.dataset.identifiers

    def load_case(self, case_id: str) -> tuple:
        """As nnU-Net's, with a segmentation int16 (1 + K, Z, Y, X) of labels and of probabilities x 255."""
        image, _, previous, properties = self.dataset.load_case(case_id)
        mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net does
        path = str(segmentation_path(self.folder, case_id))
        segmentation = blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **mapped)
        return image, segmentation, previous, properties


def segmentation_path(folder: Path, case_id: str) -> Path:
    """Where the segmentation of a case with its soft labels lies."""
    return folder / f"{case_id}_seg.b2nd"


def soft_label_folder(preprocessed: Path) -> Path:
    """Folder of the segmentations with soft labels, beside that of a configuration's preprocessed cases."""
    return preprocessed.with_name(f"{preprocessed.name}_soft_labels")


def prepare_soft_labels(
    dataset: nnUNetBaseDataset,
    folder: Path,
    dataset_name: str,
    channels: int,
    plans: PlansManager,
    configuration: ConfigurationManager,
) -> None:
    """Write the segmentations with soft labels that are missing or older than their sources.

    UserError: nnUNet_raw is not set, no soft label of a case, another size than the case had.

    Args:
        folder: where to write.
        channels: K, of each soft label.
    """
    raw = nnunet_folder("nnUNet_raw")
    if raw is None:
        raise UserError(
            f"found no variable nnUNet_raw, expected it for the soft labels in {dataset_name}/{FOLDER}; run "
            "export nnUNet_raw=FOLDER, or train without them: NNUNET_ORDER_OPTIONS=soft_label_weight=0"
        )
    folder.mkdir(exist_ok=True)

    def prepare(case_id: str) -> None:
        source = soft_label_path(raw / dataset_name, case_id)
        target = segmentation_path(folder, case_id)
        own = Path(dataset.source_folder) / f"{case_id}.pkl"  # which preprocessing writes last
        if target.is_file() and all(
            path.is_file() and path.stat().st_mtime <= target.stat().st_mtime for path in (source, own)
        ):
            return
        _, segmentation, _, properties = dataset.load_case(case_id)
        shape = shape_before_preprocessing(properties, plans.transpose_forward)
        probabilities = read_soft_label(source, channels, shape)
        soft = preprocessed(probabilities, segmentation.shape[1:], properties, plans, configuration)
        save_segmentation(target, np.concatenate([segmentation[:].astype(np.int16), soft.astype(np.int16)]))

    in_parallel(prepare, dataset.identifiers, "soft labels")


def shape_before_preprocessing(properties: dict, transpose: Sequence[int]) -> tuple[int, ...]:
    """(Z, Y, X) of a case as nnU-Net's reader gave it."""
    turned = properties["shape_before_cropping"]
    return tuple(int(turned[list(transpose).index(axis)]) for axis in range(len(turned)))


def preprocessed(
    probabilities: np.ndarray,
    shape: Sequence[int],
    properties: dict,
    plans: PlansManager,
    configuration: ConfigurationManager,
) -> np.ndarray:
    """uint8 (K, Z, Y, X) as stored -> uint8 (K, *shape), by the steps of nnU-Net's DefaultPreprocessor.

    Resampled like probabilities that nnU-Net exports, but the other way round.

    Args:
        shape: of the case's preprocessed segmentation.
        properties: what preprocessing noted of the case.
    """
    axes = plans.transpose_forward
    turned = probabilities.transpose(0, *(axis + 1 for axis in axes))
    box = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
    cropped = turned[(slice(None), *box)]
    if cropped.shape[1:] == tuple(shape):
        return cropped
    spacing = [properties["spacing"][axis] for axis in axes]
    target = [spacing[0], *configuration.spacing][-len(spacing) :]  # 2d keeps the spacing between slices
    resampled = configuration.resampling_fn_probabilities(
        cropped.astype(np.float32), tuple(shape), spacing, target
    )
    return np.rint(np.clip(np.asarray(resampled), 0, 255)).astype(np.uint8)


def save_segmentation(path: Path, segmentation: np.ndarray) -> None:
    """Write an array for memory-mapped reading, under a hidden name first."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a killed process; blosc2 refuses to overwrite
    blosc2.asarray(segmentation, urlpath=str(partial), cparams={"nthreads": 1})
    os.replace(partial, path)
