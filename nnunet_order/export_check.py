"""Does the exported graph of frames say what PyTorch and `predict` say? Asked before the file is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset_conversion.system.errors import UserError
from nnunet_order.image_steps import Network, Segmentation, segment
from nnunet_order.model_folder import TrainedModel
from nnunet_order.onnx_file import OnnxMetadata
from nnunet_order.onnx_model import OnnxModel

PER_MILLION = 5  # pixels that may differ where images are resized; elsewhere none
UNDECIDED = 1e-3  # probabilities that are nearer to each other leave a pixel's label to rounding
PROBABILITY_TOLERANCE = 1e-2


def check_frame_graph(model: TrainedModel, network_file: Path, frame_file: Path) -> str:
    """Segment drawn frames by PyTorch, by the file of the network and by that of frames; what was found.

    UserError: label maps differ at more than single undecided pixels, or probabilities do.
    """
    of_frames = OnnxModel(frame_file)
    metadata = of_frames.metadata
    references: dict[str, Network] = {
        "PyTorch": torch_network(model),
        "nnunet-order predict": OnnxModel(network_file).run_network,
    }
    differing, pixels = dict.fromkeys(references, 0), 0
    for frame in drawn_frames(metadata):
        found = of_frames.segment(frame)
        pixels += found.label_map.size
        for name, network in references.items():
            expected = segment(frame, metadata, network, metadata.whole_image)
            differing[name] += compare(found, expected, metadata, name)
    counts = " and ".join(f"{count} from {name}'s" for name, count in differing.items())
    return f"of {pixels} pixels of drawn frames, labels differ at {counts}"


def torch_network(model: TrainedModel) -> Network:
    """The trained network as a function of arrays."""
    import torch

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model.network(torch.from_numpy(np.ascontiguousarray(image))).numpy()

    return run


def compare(found: Segmentation, expected: Segmentation, metadata: OnnxMetadata, reference: str) -> int:
    """The number of pixels whose labels differ. UserError: too many, or other probabilities."""
    differs = found.label_map != expected.label_map
    allowed = differs.size * PER_MILLION // 10**6 if metadata.max_side is not None else 0
    clear = int((differs & ~is_undecided(expected.probabilities, metadata)).sum())
    distance = float(np.abs(found.probabilities - expected.probabilities).max())
    if clear > allowed or not distance <= PROBABILITY_TOLERANCE:  # also true for NaN
        height, width = differs.shape
        raise UserError(
            f"found {clear} of {differs.size} pixels of a {width} x {height} frame with other labels than "
            f"{reference}'s and probabilities up to {distance:.1e} apart, expected at most {allowed} and "
            f"{PROBABILITY_TOLERANCE:g}; nothing was written, try --plain-onnx, or other versions of torch "
            "and onnxruntime"
        )
    return int(differs.sum())


def is_undecided(probabilities: np.ndarray, metadata: OnnxMetadata) -> np.ndarray:
    """(K, H, W) -> (H, W): whether rounding may decide a pixel's label."""
    if metadata.regions_class_order is not None:
        return (np.abs(probabilities - 0.5) < UNDECIDED).any(axis=0)
    second, first = np.sort(probabilities, axis=0)[-2:]
    return first - second < UNDECIDED


def drawn_frames(metadata: OnnxMetadata) -> Iterator[np.ndarray]:
    """Frames (H, W, C) of coloured clouds in a black frame: smaller and larger than the patch, and black."""
    random = np.random.default_rng(0)
    height, width = metadata.patch_size
    sizes = [
        (height, width),
        (height - height // 3, width // 2 + 1),
        (height + height // 4, width + width // 2),
    ]
    if metadata.max_side is not None:
        side = metadata.max_side
        sizes += [(side * 7 // 4, side * 12 // 5 + 1), (side * 3 // 2, side + 1)]
    brightest, channels = metadata.brightest, len(metadata.channel_names)
    for rows, columns in sizes:
        coarse = random.uniform(0, 1, (rows // 16 + 1, columns // 16 + 1, channels))
        clouds = coarse.repeat(16, axis=0).repeat(16, axis=1)[:rows, :columns]
        values = clouds + random.normal(0, 0.05, (rows, columns, channels))
        frame = np.clip(values * brightest, 1, brightest)
        frame[: rows // 9], frame[:, columns - columns // 7 :], frame[rows // 2, columns // 3] = 0, 0, 0
        yield frame.astype(np.uint16 if brightest > 255 else np.uint8)
    yield np.zeros((height, width, channels), dtype=np.uint8)
