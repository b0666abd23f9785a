"""A trained nnU-Net model as a judge: which pixels of an image does it take for lesion?"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.raw import find_dataset, nnunet_folder
from dataset_conversion.user_error import UserError
from law_synth.hashing import hash_file
from nnunet_order.export import build_network, load_checkpoint, read_json

if TYPE_CHECKING:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

PIXEL_SPACING = (999, 1, 1)  # what nnU-Net's reader of natural images says


class Segmenter:
    """Any 2D nnU-Net model folder, whatever its trainer: `segmenter.predict(image)` is the label map.

    Folds are averaged as nnUNetv2_predict does; no mirroring. UserError: not a model folder, damaged files, a
    3D configuration, a trainer that is not installed.
    """

    def __init__(
        self,
        model_folder: Path,
        device: str = "cpu",
        folds: Sequence[int | str] | None = None,
        checkpoint: str = "checkpoint_final.pth",
    ):
        """`folds`: those to average; default: all that are there (`all` only where there is no other)."""
        import torch
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.folder = Path(model_folder)
        self.folds = _found_folds(self.folder, folds, checkpoint)
        paths = [self.folder / f"fold_{fold}" / checkpoint for fold in self.folds]
        self.plans, self.dataset_json = (read_json(self.folder / f"{n}.json") for n in ("plans", "dataset"))
        self.hash = _hash([self.folder / "plans.json", self.folder / "dataset.json", *paths])
        checkpoints = [load_checkpoint(path) for path in paths]
        trainer = checkpoints[0]["trainer_name"]
        plans = PlansManager(self.plans)
        configuration = plans.get_configuration(checkpoints[0]["init_args"]["configuration"])
        if len(configuration.patch_size) != 2:
            raise UserError(
                f"{self.folder}: found a 3D patch {tuple(configuration.patch_size)}, expected a 2D model; "
                "name a folder that ends in __2d"
            )
        network = build_network(plans, configuration, self.dataset_json, trainer)
        self._predictor = _predictor(torch.device(device))
        weights = [one["network_weights"] for one in checkpoints]
        self._predictor.manual_initialization(
            network, plans, configuration, weights, self.dataset_json, trainer, None
        )

    @property
    def name(self) -> str:
        """Folder name and folds: `nnUNetTrainerORDER__nnUNetPlans__2d, fold 0`."""
        return f"{self.folder.resolve().name}, fold {'+'.join(self.folds)}"

    @property
    def channels(self) -> int:
        """Number of image channels that it was trained on."""
        return len(self.dataset_json["channel_names"])

    @property
    def lesion_label(self) -> int:
        """The one foreground label. UserError: the model knows several, or regions."""
        values = [
            value
            for name, value in self.dataset_json["labels"].items()
            if name not in ("background", "ignore")
        ]
        if len(values) != 1 or not isinstance(values[0], int):
            raise UserError(
                f"{self.folder}: found labels {self.dataset_json['labels']}, expected background and one "
                "lesion label; judge with a model of the same task"
            )
        return values[0]

    @property
    def train_dataset(self) -> str:
        """Name of the data set that it was planned and trained on."""
        return self.plans["dataset_name"]

    @cached_property
    def train_cases(self) -> list[str] | None:
        """Sorted ids of all cases that its folds trained on, in `train_dataset`; None where unknown.

        They are known from splits_final.json, or from the raw data set where nnU-Net split by default.
        """
        splits = _splits(self.train_dataset)
        if splits is None or any(fold != "all" and int(fold) >= len(splits) for fold in self.folds):
            return None
        every_case = {case for part in splits[0].values() for case in part}
        trained = [every_case if fold == "all" else splits[int(fold)]["train"] for fold in self.folds]
        return sorted(set().union(*trained))

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Image float32 (C, Y, X) as stored -> label map int (Y, X), labels as in the model's dataset.json.

        Deterministic on CPU. UserError: another number of channels.
        """
        if len(image) != self.channels:
            raise UserError(
                f"{self.folder}: the model reads {self.channels} channel(s), found images of {len(image)}; "
                "judge with a model that was trained on such images"
            )
        volume = np.ascontiguousarray(image[:, None], dtype=np.float32)  # (C, Z = 1, Y, X)
        properties = {"spacing": PIXEL_SPACING}
        return self._predictor.predict_single_npy_array(volume, properties)[0].astype(np.int64)

    def lesion_mask(self, image: np.ndarray) -> np.ndarray:
        """uint8 (Y, X, 3) -> uint8 (Y, X) of 0 and 1; a model of grey images sees the rounded mean."""
        channels = np.moveaxis(image, -1, 0).astype(np.float32)  # (3, Y, X)
        if self.channels == 1:
            channels = np.rint(channels.mean(0, keepdims=True))
        return (self.predict(channels) == self.lesion_label).astype(np.uint8)


def load_judge(
    folder: Path, device: torch.device | str = "cpu", folds: Sequence[int | str] | None = None
) -> Segmenter:
    """A segmenter that knows one lesion label. UserError: as `Segmenter`, or it knows several, or regions."""
    segmenter = Segmenter(folder, str(device), folds)
    segmenter.lesion_label  # noqa: B018 - refuses a judge of another task before hours of work
    return segmenter


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


def _found_folds(folder: Path, wanted: Sequence[int | str] | None, checkpoint: str) -> list[str]:
    """Names of the folds to load; UserError: one is missing, or there is none."""
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    numbered = [fold for fold in found if fold.isdigit()]
    chosen = [str(fold) for fold in wanted] if wanted is not None else numbered or found
    missing = [fold for fold in chosen if fold not in found]
    if missing or not chosen:
        raise UserError(
            f"{folder}: found {checkpoint} in folds: {', '.join(found) or 'none'}; expected "
            f"{', '.join(missing) or 'at least one'}; name a folder <trainer>__<plans>__2d of nnUNet_results"
        )
    return chosen


def _splits(dataset: str) -> list[dict[str, list[str]]] | None:
    preprocessed = nnunet_folder("nnUNet_preprocessed")
    path = preprocessed / dataset / "splits_final.json" if preprocessed else None
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    try:
        return find_dataset(dataset).read_splits()
    except UserError:
        return None


def _hash(paths: Sequence[Path]) -> str:
    """sha256 over the contents of files; the same model elsewhere has the same hash."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()
