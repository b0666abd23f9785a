"""The verb `export`: a trained 2D nnU-Net model as one ONNX file that runs without nnU-Net and torch."""

from __future__ import annotations

import inspect
import json
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.folder_lock import leaving_no_empty_parents
from dataset_conversion.user_error import UserError, check_writable, writing
from nnunet_order.torch_file import load_torch
from nnunet_order.trusted_networks import check_architecture, find_trainer

if TYPE_CHECKING:
    import onnx
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
    from torch import nn

logger = logging.getLogger(__name__)

METADATA_KEY = "nnunet_order"
OPSET = 18
TOLERANCE = 1e-4  # of the output's range, between torch and onnxruntime
INSTALL_HINT = "pip install 'law-order[onnx]'"


@dataclass(frozen=True)
class Export:
    """Write a trained model as one ONNX file with everything that prediction needs.

    Any 2D nnU-Net model will do, whatever its trainer. The file takes any batch and size (of networks other
    than this package's, multiples of the metadata's size_multiple) and is compared with torch before it is
    kept. `nnunet-order predict` runs it if the images were PNG, BMP or TIFF.
    """

    model: Path
    """Results folder, <trainer>__<plans>__2d, or one of its fold_x folders. Networks of other packages than
    nnU-Net's want your trust: NNUNET_ORDER_TRUSTED_NETWORKS="my_package"."""
    out: Path
    """ONNX file to write."""
    fold: str | None = None
    """Fold to export, a number or `all`; default: the only one that is trained."""
    checkpoint: str = "checkpoint_final.pth"
    """File name of the weights in the fold's folder."""

    def run(self) -> None:
        from nnunet_order.predict import warn_if_unsupported  # which imports this module

        require_onnx()
        if self.out.suffix != ".onnx" or self.out.exists():
            raise UserError(f"--out is {self.out}, expected a new file ending in .onnx; give another name")
        check_writable(self.out)
        model = load_model(self.model, self.fold, self.checkpoint)
        warn_if_unsupported(metadata(model))
        partial = self.out.with_name(f".{self.out.name}.partial")
        with leaving_no_empty_parents(self.out), writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            try:
                difference = write_onnx(model, partial)
                os.replace(partial, self.out)
            finally:
                partial.unlink(missing_ok=True)
        size = self.out.stat().st_size / 1024
        logger.info("%s: %.0f KiB, max |torch - onnxruntime| = %.1e", self.out, size, difference)


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode with trained weights, and what nnU-Net knows about it."""

    network: nn.Module
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict
    trainer: str
    fold: str
    checkpoint: str

    @property
    def input_channels(self) -> int:
        """Channels of the images."""
        return len(self.dataset_json["channel_names"])

    @property
    def size_multiple(self) -> int:
        """The total stride; networks that cannot take any size want multiples of it."""
        strides = self.configuration.network_arch_init_kwargs.get("strides", [[32, 32]])
        return int(np.prod(strides, axis=0).max())


def require_onnx() -> None:
    """Raise UserError unless the packages of the extra `onnx` are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"found no package {error.name}, export needs it; {INSTALL_HINT}") from None


def load_model(folder: Path, fold: str | None, checkpoint_name: str) -> TrainedModel:
    """Build the network of a results folder through its own trainer class and load its weights.

    Raises UserError: files missing or damaged, a 3D configuration, a trainer that is not installed, a network
    that is not trusted.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder, fold = find_fold(folder, fold, checkpoint_name)
    plans = PlansManager(read_json(folder / "plans.json"))
    dataset_json = read_json(folder / "dataset.json")
    path = folder / f"fold_{fold}" / checkpoint_name
    checkpoint = load_checkpoint(path)
    configuration = plans.get_configuration(checkpoint["init_args"]["configuration"])
    if len(configuration.patch_size) != 2:
        raise UserError(
            f"{folder}: found a 3D patch {tuple(configuration.patch_size)}, expected 2D; export a 2d model"
        )
    network = build_network(plans, configuration, dataset_json, checkpoint["trainer_name"])
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"{path}: the weights do not fit {checkpoint['trainer_name']}'s network ({reason}); "
            "use the version that trained it"
        ) from error
    return TrainedModel(
        network.eval(), plans, configuration, dataset_json, checkpoint["trainer_name"], fold, checkpoint_name
    )


def find_fold(folder: Path, fold: str | None, checkpoint_name: str) -> tuple[Path, str]:
    """Results folder and fold of `--model` and `--fold`; UserError unless exactly one checkpoint is meant."""
    if folder.name.startswith("fold_") and not (folder / "plans.json").exists():
        named = folder.name.removeprefix("fold_")
        if fold is not None and fold != named:
            raise UserError(f"found --model {folder} with --fold {fold}, expected one fold; drop --fold")
        folder, fold = folder.parent, named
    trained = sorted(
        path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint_name}")
    )
    if fold is None and len(trained) == 1:
        return folder, trained[0]
    if fold not in trained:
        found = ", ".join(trained) or "none"
        raise UserError(
            f"{folder}: found {checkpoint_name} in folds: {found}; expected {fold or 'exactly one'}; "
            "give the --fold of a trained one"
        )
    return folder, fold


def read_json(path: Path) -> dict:
    """Read a JSON file of a results folder; UserError when it is missing or malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__}, not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected an nnU-Net results folder") from error
    return content


def load_checkpoint(path: Path) -> dict:
    """Read an nnU-Net checkpoint without running code from it; UserError when that fails.

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
    return load_torch(path, "an nnU-Net checkpoint", "restore it or train again", needed, allowed)


def build_network(
    plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict, trainer_name: str
) -> nn.Module:
    """The network as its trainer class builds it for inference.

    UserError: the trainer is not found, or plans.json names code that is not trusted (`trusted_networks`).
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    trainer = find_trainer(trainer_name)
    own = getattr(trainer, "network_class", None)  # of a trainer that is made of ours
    check_architecture(configuration.configuration["architecture"], [own] if own else [])
    architecture = (plans, configuration)
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        architecture = (  # the older signature, which nnU-Net takes, too
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    return trainer.build_network_architecture(
        *architecture,
        determine_num_input_channels(plans, configuration, dataset_json),
        plans.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )


def write_onnx(model: TrainedModel, path: Path) -> float:
    """Write network and metadata to `path`; the largest difference between torch and onnxruntime."""
    import onnx
    import torch

    dynamic = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        model.network,
        (torch.zeros(2, model.input_channels, 2 * model.size_multiple, 3 * model.size_multiple),),
        path,
        dynamo=True,  # the older exporter lacks operators of ORDER's attention
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        external_data=False,
        verbose=False,
    )
    exported = onnx.load(path)
    tidy(exported)
    onnx.helper.set_model_props(exported, {METADATA_KEY: json.dumps(metadata(model))})
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
    return largest_difference(model, path)


def tidy(exported: onnx.ModelProto) -> None:
    """Drop source positions and intermediate shapes (two thirds of the file); name the free axes."""
    for node in exported.graph.node:
        del node.metadata_props[:]
    del exported.graph.value_info[:]
    for tensor in (exported.graph.input[0], exported.graph.output[0]):
        axes = tensor.type.tensor_type.shape.dim
        for axis, name in zip((axes[0], axes[2], axes[3]), ("batch", "height", "width"), strict=True):
            axis.dim_param = name


def metadata(model: TrainedModel) -> dict:
    """What `predict` must know, and where the model comes from, as JSON types."""
    labels = model.plans.get_label_manager(model.dataset_json)
    return {
        "labels": model.dataset_json["labels"],
        "regions_class_order": labels.regions_class_order if labels.has_regions else None,
        "label_values": [int(value) for value in labels.all_labels],
        "channel_names": model.dataset_json["channel_names"],
        "file_ending": model.dataset_json["file_ending"],
        "normalization_schemes": model.configuration.normalization_schemes,
        "use_mask_for_norm": model.configuration.use_mask_for_norm,
        "intensity_properties": model.plans.foreground_intensity_properties_per_channel,
        "spacing": list(model.configuration.spacing),
        "patch_size": list(model.configuration.patch_size),
        "size_multiple": model.size_multiple,
        "binary_sigmoid": type(model.network).__name__ == "SigmoidHead",
        "architecture": model.configuration.configuration["architecture"],
        "dataset": model.plans.dataset_name,
        "plans": model.plans.plans_name,
        "trainer": model.trainer,
        "fold": model.fold,
        "checkpoint": model.checkpoint,
        "versions": {package: version(package) for package in ("nnunetv2", "torch")},
    }


def largest_difference(model: TrainedModel, path: Path) -> float:
    """Largest |torch - onnxruntime| on random images of two sizes; UserError when above the tolerance."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch, rows, columns in ((1, 2, 3), (2, 5, 4)):
        size = (batch, model.input_channels, rows * model.size_multiple, columns * model.size_multiple)
        image = torch.randn(size, generator=generator)
        with torch.no_grad():
            expected = model.network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        difference = float(np.abs(found - expected).max())
        if not difference <= TOLERANCE * np.ptp(expected):  # also true for NaN
            raise UserError(
                f"onnxruntime differs from torch by {difference:.1e} on logits of range "
                f"{np.ptp(expected):.1e}, expected at most {TOLERANCE:g} of it; nothing was written, "
                "try other versions of torch and onnxruntime"
            )
        largest = max(largest, difference)
    return largest
