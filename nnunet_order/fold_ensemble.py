"""The trained folds of an nnU-Net model folder as one segmenter, with their outputs averaged."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_conversion.raw.dataset import RawDataset, find_dataset, nnunet_folder
from dataset_conversion.raw.folds import read_folds, read_splits
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from nnunet_order.model_folder import CHECKPOINT, find_folds, open_model_folder, read_checkpoint
from nnunet_order.soft_labels.record import read_distillation

if TYPE_CHECKING:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


class FoldEnsemble:
    """Any 2D nnU-Net model folder, whatever its trainer, trained on pictures or volumes.

    Folds are averaged as nnUNetv2_predict does; no mirroring. UserError: not a model folder, damaged files, a
    3D configuration, a trainer that is not installed, a network that is not trusted.
    """

    def __init__(
        self,
        model_folder: Path,
        device: str = "cpu",
        folds: Sequence[int | str] | None = None,
        checkpoint: str = CHECKPOINT,
    ):
        """`folds`: those to average; default: all that are there (`all` only where there is no other)."""
        import torch

        self.folder = Path(model_folder)
        self.folds = find_folds(self.folder, folds, checkpoint)
        paths = [self.folder / f"fold_{fold}" / checkpoint for fold in self.folds]
        self.model = open_model_folder(self.folder)
        self.hash = _hash([self.folder / "plans.json", self.folder / "dataset.json", *paths])
        checkpoints = [read_checkpoint(path) for path in paths]
        trainer = checkpoints[0].trainer_name
        _, configuration = self.model.configuration(checkpoints[0].init_args.configuration)
        network = self.model.build_network(configuration, trainer)
        self._predictor = _predictor(torch.device(device))
        weights = [one.network_weights for one in checkpoints]
        self._predictor.manual_initialization(
            network, self.model.manager, configuration, weights, self.model.dataset_json, trainer, None
        )

    @property
    def name(self) -> str:
        """Folder name and folds: `nnUNetTrainerORDER__nnUNetPlans__2d, fold 0`."""
        return f"{self.folder.resolve().name}, fold {'+'.join(self.folds)}"

    @property
    def channels(self) -> int:
        """Number of image channels that it was trained on."""
        return len(self.model.data.channel_names)

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Foreground name -> label values, as `RawDataset.regions` of its training data."""
        return RawDataset(self.folder, self.model.dataset_json).regions

    @property
    def train_dataset(self) -> str:
        """Name of the data set that it was planned and trained on."""
        return self.model.plans.dataset_name

    @property
    def train_origin(self) -> str:
        """As `RawDataset.origin`, of `train_dataset`."""
        return self.model.train_origin

    @cached_property
    def train_cases(self) -> list[str] | None:
        """Sorted ids of all cases that its folds trained on, in `train_dataset`; None where unknown.

        They are known from splits_final.json, or from the raw data set where nnU-Net split by default.
        """
        splits = _splits(self.train_dataset)
        if splits is None or any(fold != "all" and int(fold) >= len(splits) for fold in self.folds):
            return None
        # fold_all trains on all that was preprocessed, also on what is in no fold.
        every_case = {case for fold in splits for part in fold.values() for case in part}
        every_case |= _raw_cases(self.train_dataset)
        trained = [every_case if fold == "all" else splits[int(fold)]["train"] for fold in self.folds]
        return sorted(set().union(*trained, self._cases_of_teacher))

    @property
    def _cases_of_teacher(self) -> set[str]:
        """What it knows through the soft labels of a teacher that was trained on cases of the same origin."""
        try:
            folder = find_dataset(self.train_dataset).folder
        except UserError:  # the data set is not here
            return set()
        distilled = read_distillation(folder)
        if distilled is None or distilled.teacher.origin != self.train_origin:
            return set()
        return set(distilled.teacher.train_cases or ())

    def check_task(self, dataset: RawDataset) -> None:
        """UserError unless it segments the labels or regions of `dataset` in images of as many channels.

        Names and values are compared, but a single class may have any.
        """
        found, expected = self.regions, dataset.regions
        if not (has_one_class(found) and has_one_class(expected)) and _as_sets(found) != _as_sets(expected):
            raise UserError(
                f"{self.folder}: found a model of the labels {self.model.data.labels}, expected those of "
                f"{dataset.folder.name}, {dataset.json['labels']}; give a model of the same task"
            )
        if self.channels != len(dataset.channel_names):
            raise UserError(
                f"{self.folder}: found a model of {self.channels} channel(s), expected "
                f"{len(dataset.channel_names)} as {dataset.folder.name} has; give a model that was trained "
                "on such images"
            )

    def predict(self, volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Volume float32 (C, Z, Y, X), spacing (Z, Y, X) -> label map int (Z, Y, X) of its own labels.

        Both as nnU-Net's reader gives them; turned, resampled and, where it knows regions, put together by
        nnU-Net. Deterministic on CPU. UserError: another number of channels.
        """
        return self._predict(volume, spacing).astype(np.int64)

    def predict_probabilities(
        self, volume: np.ndarray, spacing: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `predict`, and the foreground's probabilities float32 (K, Z, Y, X) at the volume's size.

        K: the foreground labels, or the regions, in the order of the network's outputs.
        """
        label, probabilities = self._predict(volume, spacing, save_or_return_probabilities=True)
        foreground = probabilities if self.model.labels.has_regions else probabilities[1:]
        return label.astype(np.int64), foreground.astype(np.float32)

    def _predict(self, volume: np.ndarray, spacing: Sequence[float], **options: Any) -> Any:
        if len(volume) != self.channels:
            raise UserError(
                f"{self.folder}: the model reads {self.channels} channel(s), found images of {len(volume)}; "
                "give a model that was trained on such images"
            )
        volume = np.ascontiguousarray(volume, dtype=np.float32)
        properties = {"spacing": [float(size) for size in spacing]}
        return self._predictor.predict_single_npy_array(volume, properties, **options)


def has_one_class(regions: Mapping[str, Sequence[int]]) -> bool:
    """Whether there is one foreground label, and no region of several."""
    return [*map(len, regions.values())] == [1]


def _as_sets(regions: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """The order of a region's values says nothing."""
    return {name: set(values) for name, values in regions.items()}


def _predictor(device: torch.device) -> nnUNetPredictor:
    """An nnUNetPredictor that prints nothing and leaves cuDNN's global setting as it was."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    benchmark = torch.backends.cudnn.benchmark
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(
            use_mirroring=False,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
    torch.backends.cudnn.benchmark = benchmark
    return predictor


def _splits(dataset: str) -> list[dict[str, list[str]]] | None:
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    path = preprocessed / dataset / "splits_final.json" if preprocessed else None
    if path is not None and path.is_file():
        return read_folds(path)
    try:
        return read_splits(find_dataset(dataset))
    except UserError:
        return None


def _raw_cases(dataset: str) -> set[str]:
    """Ids of the training cases of a data set; none where it is not here."""
    try:
        return {case.id for case in find_dataset(dataset).training_cases}
    except UserError:
        return set()


def _hash(paths: Sequence[Path]) -> str:
    """sha256 over the contents of files; the same model elsewhere has the same hash."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()
