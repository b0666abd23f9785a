"""The verb `export`: a trained 2D nnU-Net model as one ONNX file that runs without nnU-Net and torch."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.system.errors import UserError, check_writable, writing
from dataset_conversion.system.lock import leaving_no_empty_parents
from nnunet_order.deployment.deploy import check_deployment, write_deployment
from nnunet_order.export_check import check_frame_graph
from nnunet_order.graph.frame_graph import frame_model, strip
from nnunet_order.model_folder import TrainedModel, load_model
from nnunet_order.onnx_file import FORMAT, INSTALL_HINT, OnnxMetadata, as_properties
from nnunet_order.onnx_model import unsupported
from nnunet_order.options import Export

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

OPSET = 18
TOLERANCE = 1e-4  # of the output's range, between torch and onnxruntime


def export(options: Export) -> None:
    """Write the ONNX file. UserError: bad options, a model that cannot be opened or exported."""
    options.check()
    require_onnx()
    out = options.out
    if out.exists():
        raise UserError(f"found --out {out}, expected a new file; give another name")
    check_writable(out)
    if options.deploy is not None:
        check_deployment(options.deploy)
    model = load_model(options.model, options.fold, options.checkpoint)
    check_supported(metadata(model), options.logits_only)
    with leaving_no_empty_parents(out), writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            file = Path(scratch) / "network.onnx"
            difference = write_network(model, file)
            checked = f"max |torch - onnxruntime| = {difference:.1e}"
            if not options.logits_only:
                file, checked = write_frame_model(model, file, options)
            os.replace(file, out)
    logger.info("%s: %.0f KiB, %s", out, out.stat().st_size / 1024, checked)
    if options.deploy is not None:
        write_deployment(out, options.deploy)
        logger.info("wrote %s: a Triton model repository, segment.py and segment.cpp", options.deploy)


def check_supported(metadata: OnnxMetadata, logits_only: bool) -> None:
    """Models that `predict` refuses, such as those of volumes, because resampling is nnU-Net's.

    Of their networks alone a warning. UserError: a graph of all steps is wanted.
    """
    if (reason := unsupported(metadata)) and not logits_only:
        raise UserError(f"{reason}; give --logits-only to export the network alone")
    elif reason:
        logger.warning("%s; nnunet-order predict cannot run it, but your own program may", reason)


def require_onnx() -> None:
    """Raise UserError unless the packages of the extra `onnx` are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        from onnxscript import GraphBuilder  # noqa: F401  # older versions have none
    except ImportError as error:
        raise UserError(
            f"found no package {error.name}, expected it for export; run: {INSTALL_HINT}"
        ) from None


def write_network(model: TrainedModel, path: Path) -> float:
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
    onnx.helper.set_model_props(exported, as_properties(metadata(model)))
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
    return largest_difference(model, path)


def write_frame_model(model: TrainedModel, network_file: Path, options: Export) -> tuple[Path, str]:
    """Write the graph of all steps beside the file of the network; the file, and what its check found."""
    import onnx

    about = replace(metadata(model), takes_frames=True, whole_image=options.whole_image)
    exported = frame_model(onnx.load(network_file), about, options.plain_onnx)
    onnx.checker.check_model(exported, full_check=True)
    file = network_file.with_name("frames.onnx")
    onnx.save(exported, file)
    return file, check_frame_graph(model, network_file, file)


def tidy(exported: onnx.ModelProto) -> None:
    """Drop what nobody needs; name the free axes."""
    strip(exported.graph)
    for tensor in (exported.graph.input[0], exported.graph.output[0]):
        axes = tensor.type.tensor_type.shape.dim
        for axis, name in zip((axes[0], axes[2], axes[3]), ("batch", "height", "width"), strict=True):
            axis.dim_param = name


def metadata(model: TrainedModel) -> OnnxMetadata:
    """What `predict` must know, and where the model comes from."""
    folder, configuration = model.folder, model.configuration
    labels = folder.labels
    return OnnxMetadata(
        labels=folder.data.labels,
        regions_class_order=labels.regions_class_order if labels.has_regions else None,
        label_values=[int(value) for value in labels.all_labels],
        channel_names=folder.data.channel_names,
        file_ending=folder.data.file_ending,
        normalization_schemes=configuration.normalization_schemes,
        use_mask_for_norm=configuration.use_mask_for_norm,
        intensity_properties=folder.plans.foreground_intensity_properties_per_channel,
        spacing=configuration.spacing,
        patch_size=configuration.patch_size,
        size_multiple=configuration.size_multiple,
        binary_sigmoid=type(model.network).__name__ == "SigmoidHead",
        architecture=model.architecture,
        dataset=folder.plans.dataset_name,
        plans=folder.plans.plans_name,
        trainer=model.trainer,
        fold=model.fold,
        checkpoint=model.checkpoint,
        versions={package: version(package) for package in ("nnunetv2", "torch")},
        format=FORMAT,
        max_side=folder.data.max_side,
        median_size=median_size(folder.plans.original_median_shape_after_transp),
    )


def median_size(shape: list[float] | None) -> list[int] | None:
    """(H, W) of the planned (1, H, W), which is of cropped images; None where the plans do not say it."""
    return [round(side) for side in shape[-2:]] if shape is not None else None


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
                f"found a difference of {difference:.1e} between onnxruntime and torch on logits of range "
                f"{np.ptp(expected):.1e}, expected at most {TOLERANCE:g} of it; nothing was written, "
                "try other versions of torch and onnxruntime"
            )
        largest = max(largest, difference)
    return largest
