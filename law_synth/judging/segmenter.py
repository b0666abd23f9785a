"""A trained nnU-Net model as a judge: which pixels of an image does it take for which class?"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw.dataset import RawDataset, find_dataset, nnunet_folder
from dataset_conversion.raw.folds import Fold, read_folds, read_splits
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from law_synth.view.places import Geometry
from law_synth.view.slices import Slice, SliceView
from nnunet_order.model_folder import CHECKPOINT, find_folds, open_model_folder, read_checkpoint

if TYPE_CHECKING:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


class Segmenter:
    """Any 2D nnU-Net model folder, whatever its trainer, trained on pictures or volumes.

    `predict` gives nnU-Net's label map of a volume, `find` and `find_slice` the mask of one image.

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
        return sorted(set().union(*trained))

    def predict(self, volume: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Volume float32 (C, Z, Y, X), spacing (Z, Y, X) -> label map int (Z, Y, X) of its own labels.

        Both as nnU-Net's reader gives them; turned, resampled and, where it knows regions, put together by
        nnU-Net. Deterministic on CPU. UserError: another number of channels.
        """
        if len(volume) != self.channels:
            raise UserError(
                f"{self.folder}: the model reads {self.channels} channel(s), found images of {len(volume)}; "
                "judge with a model that was trained on such images"
            )
        volume = np.ascontiguousarray(volume, dtype=np.float32)
        properties = {"spacing": [float(size) for size in spacing]}
        return self._predictor.predict_single_npy_array(volume, properties).astype(np.int64)

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
    found, expected = segmenter.regions, dataset.regions
    one_class = all([*map(len, regions.values())] == [1] for regions in (found, expected))
    if not one_class and _as_sets(found) != _as_sets(expected):
        raise UserError(
            f"{folder}: found a model of the labels {segmenter.model.data.labels}, expected those of "
            f"{dataset.folder.name}, {dataset.json['labels']}; judge with a model of the same task"
        )
    if segmenter.channels != len(dataset.channel_names):
        raise UserError(
            f"{folder}: found a model of {segmenter.channels} channel(s), expected "
            f"{len(dataset.channel_names)} as {dataset.folder.name} has; judge with a model that was trained "
            "on such images"
        )
    return segmenter


def judge_of_fold(
    folder: Path, device: torch.device | str, fold: Fold | None, dataset: RawDataset
) -> Segmenter:
    """As `load_judge`: of a model of `dataset` its fold `fold` alone, where it is there, else all folds."""
    own = (folder / f"fold_{fold}" / CHECKPOINT).is_file() and _is_model_of(folder, dataset)
    return load_judge(folder, device, [fold] if own else None, dataset)


def _is_model_of(folder: Path, dataset: RawDataset) -> bool:
    return open_model_folder(folder).train_origin == dataset.origin


def _as_sets(regions: dict[str, tuple[int, ...]]) -> dict[str, set[int]]:
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
