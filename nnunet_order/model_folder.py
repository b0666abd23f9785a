"""The one place that opens nnU-Net's results folder of a trained model, <trainer>__<plans>__<configuration>.

The files come from elsewhere: nothing in them is run, and only trusted classes are called, see
`trusted_networks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_conversion.raw.description import check_max_side
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import converted, read_lenient_json
from nnunet_order.torch_file import load_torch
from nnunet_order.trusted_networks import check_architecture, find_trainer

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

CHECKPOINT = "checkpoint_final.pth"
RESTORE = "restore it from the training, or train again"


@dataclass(frozen=True)
class Plans:
    """What we read of plans.json; nnU-Net reads the rest."""

    dataset_name: str
    plans_name: str
    transpose_forward: list[int]
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]]
    original_median_shape_after_transp: list[float] | None = None
    """Of the training cases without their black borders, in pixels: (Z, Y, X)."""


@dataclass(frozen=True)
class NetworkOptions:
    """What we read of a network's options."""

    strides: list[list[int] | int] = field(default_factory=lambda: [[32, 32]])


@dataclass(frozen=True)
class Architecture:
    """What we read of a configuration's architecture; `check_architecture` reads the rest."""

    network_class_name: str
    arch_kwargs: NetworkOptions


@dataclass(frozen=True)
class Configuration:
    """What we read of a configuration in plans.json, with what it inherits."""

    patch_size: list[int]
    spacing: list[float]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    architecture: Architecture

    @property
    def size_multiple(self) -> int:
        """The total stride; networks that cannot take any size want multiples of it."""
        return int(np.prod(self.architecture.arch_kwargs.strides, axis=0).max())


@dataclass(frozen=True)
class DatasetOfModel:
    """What we read of the dataset.json beside a model."""

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    file_ending: str
    regions_class_order: list[int] | None = None
    subset_of: str | None = None
    max_side: int | None = None
    """As `Description.max_side`."""


@dataclass(frozen=True)
class TrainingOptions:
    """The options that nnU-Net's trainer was made with."""

    configuration: str


@dataclass(frozen=True)
class Checkpoint:
    """What we read of a checkpoint."""

    network_weights: dict[str, Any]
    trainer_name: str
    init_args: TrainingOptions


@dataclass(frozen=True)
class ModelFolder:
    """A results folder whose plans.json and dataset.json have been read; `open_model_folder` makes it."""

    path: Path
    plans: Plans
    data: DatasetOfModel
    plans_json: dict = field(repr=False)
    """The content of plans.json, as nnU-Net takes it."""
    dataset_json: dict = field(repr=False)

    @property
    def train_origin(self) -> str:
        """As `RawDataset.origin`, of the data set that the model was trained on."""
        return self.plans.dataset_name if self.data.subset_of is None else self.data.subset_of

    @cached_property
    def manager(self) -> PlansManager:
        """nnU-Net's own view of the plans."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans_json)

    @cached_property
    def labels(self) -> LabelManager:
        """nnU-Net's own view of the labels. UserError: it cannot read them."""
        with readable(self.path / "dataset.json", "labels"):
            return self.manager.get_label_manager(self.dataset_json)

    def configuration(self, name: str) -> tuple[Configuration, ConfigurationManager]:
        """A 2D configuration, typed and as nnU-Net knows it. UserError: there is none, damaged, 3D."""
        file = self.path / "plans.json"
        if name not in self.plans.configurations:
            known = ", ".join(self.plans.configurations) or "none"
            raise UserError(f"{file}: found the configurations {known}, expected {name}; {RESTORE}")
        with readable(file, f"a configuration {name}"):
            manager = self.manager.get_configuration(name)
        typed = converted(manager.configuration, Configuration, f"{file}: {name}", RESTORE)
        if len(typed.patch_size) != 2:
            raise UserError(
                f"{self.path}: found a 3D patch {tuple(typed.patch_size)}, expected a 2D model; name a "
                "folder that ends in __2d"
            )
        return typed, manager

    def build_network(self, configuration: ConfigurationManager, trainer_name: str) -> nn.Module:
        """The network as its trainer class builds it for inference, without its weights.

        UserError: the trainer is not found, or plans.json names code that is not trusted.
        """
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        trainer = find_trainer(trainer_name)
        own = getattr(trainer, "network_class", None)  # of a trainer that is made of ours
        check_architecture(configuration.configuration["architecture"], [own] if own else [])
        architecture: tuple = (self.manager, configuration)
        if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
            architecture = (  # the older signature, which nnU-Net takes, too
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
            )
        outputs = self.labels.num_segmentation_heads
        with readable(self.path / "plans.json", "an architecture"):
            channels = determine_num_input_channels(self.manager, configuration, self.dataset_json)
            return trainer.build_network_architecture(
                *architecture, channels, outputs, enable_deep_supervision=False
            )


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode with trained weights, and what its folder says about it."""

    folder: ModelFolder
    configuration: Configuration
    architecture: dict[str, Any] = field(repr=False)
    """Its entry in plans.json."""
    network: nn.Module = field(repr=False)
    trainer: str
    fold: str
    checkpoint: str

    @property
    def input_channels(self) -> int:
        """Channels of the images."""
        return len(self.folder.data.channel_names)

    @property
    def size_multiple(self) -> int:
        """See `Configuration.size_multiple`."""
        return self.configuration.size_multiple


@contextmanager
def readable(file: Path, what: str) -> Iterator[None]:
    """UserError where nnU-Net, which checks little of what it reads, stumbles over `what` of `file`."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{file}: found {what} that nnU-Net cannot read ({reason}), expected what the training wrote; "
            f"{RESTORE}"
        ) from error


def open_model_folder(path: Path) -> ModelFolder:
    """Read plans.json and dataset.json of a results folder.

    UserError: one is not there or malformed, or a key that we read is missing or has a wrong type.
    """
    # As dicts first, which nnU-Net takes.
    plans, data = (
        read_lenient_json(path / f"{name}.json", dict[str, Any], RESTORE) for name in ("plans", "dataset")
    )
    dataset = converted(data, DatasetOfModel, path / "dataset.json", RESTORE)
    check_max_side(dataset.max_side, path / "dataset.json")
    return ModelFolder(
        path,
        converted(plans, Plans, path / "plans.json", RESTORE),
        dataset,
        plans,
        data,
    )


def load_model(folder: Path, fold: str | None, checkpoint_name: str = CHECKPOINT) -> TrainedModel:
    """Build the network of a results folder through its own trainer class and load its weights.

    UserError: files missing or damaged, a 3D configuration, a trainer that is not installed, a network that
    is not trusted, weights that do not fit.
    """
    folder, fold = find_fold(folder, fold, checkpoint_name)
    opened = open_model_folder(folder)
    path = folder / f"fold_{fold}" / checkpoint_name
    checkpoint = read_checkpoint(path)
    trainer = checkpoint.trainer_name
    configuration, manager = opened.configuration(checkpoint.init_args.configuration)
    network = opened.build_network(manager, trainer)
    try:
        network.load_state_dict(checkpoint.network_weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"{path}: found weights that do not fit {trainer}'s network ({reason}), expected its own; use "
            "the version that trained it"
        ) from error
    architecture = manager.configuration["architecture"]
    return TrainedModel(opened, configuration, architecture, network.eval(), trainer, fold, checkpoint_name)


def trained_folds(folder: Path, checkpoint_name: str = CHECKPOINT) -> list[str]:
    """Names of the folds, numbers or `all`, whose checkpoint is there."""
    found = folder.glob(f"fold_*/{checkpoint_name}")
    return sorted(path.parent.name.removeprefix("fold_") for path in found)


def find_fold(folder: Path, fold: str | None, checkpoint_name: str = CHECKPOINT) -> tuple[Path, str]:
    """Results folder and fold that `--model` and `--fold` mean. UserError: not exactly one."""
    if folder.name.startswith("fold_") and not (folder / "plans.json").exists():
        named = folder.name.removeprefix("fold_")
        if fold is not None and fold != named:
            raise UserError(f"found --model {folder} with --fold {fold}, expected one fold; leave --fold out")
        folder, fold = folder.parent, named
    trained = trained_folds(folder, checkpoint_name)
    if fold is None and len(trained) == 1:
        return folder, trained[0]
    if fold not in trained:
        found = ", ".join(trained) or "none"
        raise UserError(
            f"{folder}: found {checkpoint_name} in folds: {found}; expected {fold or 'exactly one'}; "
            "give the --fold of a trained one"
        )
    return folder, fold


def find_folds(
    folder: Path, wanted: Sequence[int | str] | None, checkpoint_name: str = CHECKPOINT
) -> list[str]:
    """The folds to average: those that are `wanted`, or else all numbered ones, or else `all`.

    UserError: one is not trained, or none is.
    """
    found = trained_folds(folder, checkpoint_name)
    numbered = [fold for fold in found if fold.isdigit()]
    chosen = [str(fold) for fold in wanted] if wanted is not None else numbered or found
    missing = [fold for fold in chosen if fold not in found]
    if missing or not chosen:
        raise UserError(
            f"{folder}: found {checkpoint_name} in folds: {', '.join(found) or 'none'}; expected "
            f"{', '.join(missing) or 'at least one'}; name a folder <trainer>__<plans>__2d of nnUNet_results"
        )
    return chosen


def read_checkpoint(path: Path) -> Checkpoint:
    """What we read of a checkpoint. UserError: as `load_checkpoint`; a wrong type."""
    return converted(load_checkpoint(path), Checkpoint, path, RESTORE)


def load_checkpoint(path: Path) -> dict:
    """Everything in an nnU-Net checkpoint, without running code from it. UserError: that fails.

    Beside tensors such a file holds NumPy scalars (losses), so their types are allowed.
    """
    rebuild_scalar = np.float64(0).__reduce__()[0]
    allowed = [
        np.dtype,
        *(type(np.dtype(scalar)) for scalar in (np.float64, np.float32, np.int64)),
        (rebuild_scalar, "numpy._core.multiarray.scalar"),
        (rebuild_scalar, "numpy.core.multiarray.scalar"),  # its name in files that NumPy 1 wrote
    ]
    needed = ("network_weights", "trainer_name", "init_args")
    return load_torch(path, "an nnU-Net checkpoint", RESTORE, needed, allowed)
