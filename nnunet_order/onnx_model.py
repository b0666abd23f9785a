"""A model that `nnunet-order export` wrote, run as nnU-Net would run it, but without nnU-Net and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset_conversion.image_files import opened
from dataset_conversion.images import read_grey, read_rgb
from dataset_conversion.notes import Notes
from dataset_conversion.system.errors import UserError
from nnunet_order.image_steps import NORMALIZATIONS, Segmentation, nonzero_box, segment
from nnunet_order.onnx_file import INSTALL_HINT, OnnxMetadata, read_properties

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
NATURAL_ENDINGS = (".png", ".bmp", ".tif")  # of data sets whose pixels have no physical size
FAR_OFF = 1.5  # times as large as the median training image, or as small


class OnnxModel:
    """An exported model: `model(image)` is the label map. Several threads may call it at once.

    A file whose graph takes frames does all the steps itself; around the network of other files, `segment`
    does them. UserError: no exported model, a normalisation or kind of data set that is not supported, or
    `whole_image` with a graph that cuts frames into tiles.
    """

    def __init__(self, file: Path, whole_image: bool = False, device: Literal["cpu", "cuda"] = "cpu"):
        self.session = open_session(file, device)
        self.metadata = read_properties(self.session.get_modelmeta().custom_metadata_map, file)
        self.whole_image = whole_image
        self.channels = len(self.metadata.channel_names)
        if reason := unsupported(self.metadata):
            raise UserError(f"{file}: {reason}; use nnUNetv2_predict")
        if whole_image and self.metadata.takes_frames and not self.metadata.whole_image:
            raise UserError(
                f"{file}: found a graph that cuts frames into tiles, expected one of whole images for "
                "--whole-image; export the model with --whole-image"
            )

    def read(self, path: Path, notes: Notes) -> np.ndarray:
        """Read an image file as the model wants it, (H, W, 3) or (H, W); UserError for other images.

        A JPEG and other files that nnU-Net does not take are turned upright as at conversion.
        """
        is_foreign = path.suffix.lower() not in (*NATURAL_ENDINGS, ".tiff")
        if self.channels == 1:
            return read_grey(path, notes, upright=is_foreign)
        pixels = read_rgb(path, notes, upright=is_foreign)
        with opened(path) as image:
            if image.mode in ("1", "L", "LA"):  # perhaps one of an image's three files, nnU-Net's other way
                raise UserError(f"{path}: found a grey image, expected RGB as in training; convert it")
        return pixels

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Image (H, W, 3) or (H, W) of grey or RGB values as stored, to its label map (H, W), uint16."""
        if self.metadata.takes_frames:
            return self._run_graph(image, "labels")[0].astype(np.uint16)
        return self.segment(image).label_map

    def segment(self, image: np.ndarray) -> Segmentation:
        """As a call, with the probabilities of labels or regions."""
        if self.metadata.takes_frames:
            labels, probabilities = self._run_graph(image, "labels", "probabilities")
            return Segmentation(labels.astype(np.uint16), probabilities)
        return segment(image, self.metadata, self.run_network, self.whole_image)

    def is_far_off(self, image: np.ndarray) -> bool:
        """Whether an image has quite another scale than the training images; False if unknown."""
        metadata = self.metadata
        if metadata.median_size is None:
            return False
        rows, columns = nonzero_box(np.atleast_3d(image).transpose(2, 0, 1))
        longer = max(rows.stop - rows.start, columns.stop - columns.start)
        if metadata.max_side is not None:
            longer *= min(1, metadata.max_side / max(image.shape[:2]))
        ratio = longer / max(metadata.median_size)
        return not 1 / FAR_OFF < ratio < FAR_OFF

    def run_network(self, image: np.ndarray) -> np.ndarray:
        """Of a file of the network alone: normalised image (1, C, H, W), float32, to logits (1, K, H, W)."""
        (logits,) = self.session.run(None, {"image": image})
        return logits

    def _run_graph(self, image: np.ndarray, *outputs: str) -> list[np.ndarray]:
        """The outputs of a graph that takes frames, each without its axis of one frame."""
        frame = np.atleast_3d(image)[None]  # (1, H, W, C)
        brightest = self.metadata.brightest
        if image.dtype != np.uint8 and image.max() > brightest:
            raise UserError(
                f"found pixel values up to {image.max()}, expected at most {brightest} as in training; "
                "convert the image"
            )
        frame = frame.astype(np.min_scalar_type(brightest))
        return [found[0] for found in self.session.run(outputs, {"frame": frame})]


def unsupported(metadata: OnnxMetadata) -> str:
    """Why a model of this metadata cannot run here; "" if it can."""
    channels, ending = len(metadata.channel_names), metadata.file_ending
    if ending not in NATURAL_ENDINGS or channels not in (1, 3):
        kinds = ", ".join(NATURAL_ENDINGS)
        return f"found a model of {channels}-channel {ending} images, expected grey or RGB ones of {kinds}"
    unknown = sorted(set(metadata.normalization_schemes) - set(NORMALIZATIONS))
    known = ", ".join(NORMALIZATIONS)
    return f"found the normalisation {', '.join(unknown)}, expected {known}" if unknown else ""


def open_session(file: Path, device: Literal["cpu", "cuda"]) -> Any:
    """The onnxruntime session of a file; UserError: package, file or device missing, or no ONNX file."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"found no package onnxruntime, expected it for predict; run: {INSTALL_HINT}"
        ) from None
    if not file.is_file():
        raise UserError(f"{file}: found no file, expected one that nnunet-order export wrote; check --model")
    provider = PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UserError(
            f"found {', '.join(available)} in onnxruntime, expected {provider}; choose another --device"
        )
    try:
        session = onnxruntime.InferenceSession(file, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common base class of their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{file}: cannot be opened ({reason}), expected an ONNX file that nnunet-order export wrote; "
            "check --model"
        ) from error
    if provider not in session.get_providers():  # it falls back to the CPU with a warning
        raise UserError(
            f"found no libraries that {provider} of onnxruntime {onnxruntime.__version__} needs, expected "
            "its CUDA and cuDNN; install those, or give --device cpu"
        )
    return session
