"""Numbers that describe a whole image: thumbnails, EfficientNet-Lite0, Inception v3 and CLIP features.

An `Extractor` turns uint8 RGB images of any size into one vector each. Network weights are read from local
files with weights_only=True and recorded by their sha256.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import urllib.error
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import hash_file
from dataset_conversion.system.provenance import require
from nnunet_order.pretrained import LITE0, LITE0_SHA256, packaged_weights
from nnunet_order.torch_file import load_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

THUMBNAIL_SIDE = 32
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity's releases
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class Extractor:
    """One way to describe images: `compute(images)` is float32 (N, D)."""

    name: str
    compute: Callable[[Sequence[np.ndarray]], np.ndarray]
    preprocessing: str
    """What happens to an image before the network sees it."""
    weights_sha256: str | None = None

    @property
    def key(self) -> str:
        """Changes with everything that changes the features."""
        text = f"{self.name}|{self.preprocessing}|{self.weights_sha256}"
        return hashlib.sha256(text.encode()).hexdigest()


def with_mirrored(image: np.ndarray) -> list[np.ndarray]:
    """The image (H, W, 3) itself, and mirrored left to right, top to bottom, and both.

    A base that was trained with flips recalls mirrored images, too.
    """
    return [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]


def extract(extractor: Extractor, batches: Iterable[Sequence[np.ndarray]], mirror: bool) -> np.ndarray:
    """Features (1, N, D) of the N images of all batches, one or more; (4, N, D) `with_mirrored`."""
    parts = []
    for images in batches:
        versions = [version for image in images for version in (with_mirrored(image) if mirror else [image])]
        features = extractor.compute(versions)
        parts.append(features.reshape(len(images), -1, features.shape[-1]))
    return np.concatenate(parts).swapaxes(0, 1)


def thumbnails(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 images (H, W, 3) -> float32 (N, 3072): 32 x 32 RGB, zero mean, unit norm.

    The dot product of two is their correlation; a constant image is all zeros.
    """
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images]
    flat = np.array(small, dtype=np.float32).reshape(len(small), 3 * THUMBNAIL_SIDE**2)
    return unit_norm(flat - flat.mean(axis=1, keepdims=True))


def thumbnail_extractor() -> Extractor:
    """`thumbnails` as an Extractor."""
    return Extractor("thumbnail", thumbnails, "32 x 32 RGB by box filter, zero mean, unit norm")


def unit_norm(vectors: np.ndarray) -> np.ndarray:
    """(..., D) -> the same directions with Euclidean norm 1; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def nearest(
    queries: np.ndarray, references: np.ndarray, leave_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Index and similarity (dot product), both (N,), of the reference (M, D) most like each query (N, D).

    `leave_out`: (N,) index of one reference that does not count for each query, such as the query itself.
    """
    indices, similarities = np.empty(len(queries), np.int64), np.empty(len(queries), np.float32)
    for start in range(0, len(queries), 512):  # bounds the memory
        part = slice(start, start + 512)
        products = queries[part] @ references.T  # (512, M)
        rows = np.arange(len(products))
        if leave_out is not None:
            products[rows, leave_out[part]] = -np.inf
        indices[part] = products.argmax(axis=1)
        similarities[part] = products[rows, indices[part]]
    return indices, similarities


def most_alike(
    queries: np.ndarray, references: np.ndarray, leave_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, of V versions of each query (V, N, D) and W of each reference (W, M, D), both (N,).

    Mirror one side only: it says the same, and the one whose features a cache keeps costs nothing.
    """
    found = [nearest(query, reference, leave_out) for query in queries for reference in references]
    indices, similarities = (np.stack(values) for values in zip(*found, strict=True))  # both (V x W, N)
    best, columns = similarities.argmax(axis=0), np.arange(indices.shape[1])
    return indices[best, columns], similarities[best, columns]


def efficientnet_extractor(device: str, batch_size: int) -> Extractor:
    """Pooled features (1280) of EfficientNet-Lite0; the ImageNet weights come with a package, no network."""
    import timm

    model = timm.create_model(LITE0, pretrained=False)
    model.load_state_dict(packaged_weights(LITE0))
    model.reset_classifier(0)
    model.eval().to(device)

    def compute(images: Sequence[np.ndarray]) -> np.ndarray:
        resized = [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in images]
        pixels = np.array([np.asarray(image) for image in resized], dtype=np.float32)
        return in_batches(model, (pixels.transpose(0, 3, 1, 2) - 127) / 128, device, batch_size)

    preprocessing = "224 x 224 by Pillow's bicubic filter with antialiasing, no crop, (RGB - 127) / 128"
    return Extractor("EfficientNetLite0", compute, preprocessing, LITE0_SHA256)


def inception_extractor(path: Path, device: str, batch_size: int) -> Extractor:
    """torch-fidelity's Inception v3 features (2048) with the weights of a local file.

    Its name says `unknown weights` unless the file is `INCEPTION_FILE`. UserError: no such file, other keys.
    """
    require("metrics", "torch_fidelity")
    from torch_fidelity.utils import create_feature_extractor

    digest, weights = hash_file(path), load_weights(path)
    # torch-fidelity unpickles its weights file, so that it gets one that we wrote.
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "inception.pth"
        _save(weights, safe)
        try:
            model = create_feature_extractor(
                "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(safe)
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"{path}: found weights of another network ({reason[:120]}), expected Inception v3 of "
                f"torch-fidelity; give {INCEPTION_FILE}"
            ) from error
    model.to(device)

    def compute(images: Sequence[np.ndarray]) -> np.ndarray:
        same_size = len({image.shape for image in images}) == 1
        stacks = [np.stack(images)] if same_size else [image[None] for image in images]
        return np.concatenate(
            [
                in_batches(model, np.ascontiguousarray(stack.transpose(0, 3, 1, 2)), device, batch_size)
                for stack in stacks
            ]
        )

    name = "Inception" if digest == INCEPTION_SHA256 else "Inception (unknown weights)"
    preprocessing = "torch-fidelity inception-v3-compat: 299 x 299 as TensorFlow 1 resizes, no antialiasing"
    return Extractor(name, compute, preprocessing, digest)


def inception_weights(path: Path | None) -> Path:
    """`path`, or torch.hub's copy of the weights, downloaded first if need be.

    ConnectionError: no file was given and none can be downloaded (HF_HUB_OFFLINE=1 or no network).
    """
    if path is not None:
        return path
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if cached.is_file():
        return cached
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise ConnectionError("HF_HUB_OFFLINE is set")
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(cached), INCEPTION_SHA256, progress=True)
    except (urllib.error.URLError, RuntimeError, OSError) as error:
        raise ConnectionError(f"{URL_INCEPTION_V3} cannot be downloaded ({error})") from error
    return cached


def clip_extractor(model_name: str, pretrained: Path, device: str, batch_size: int) -> Extractor:
    """Image features of an open_clip model with the weights of a local file or a `local-dir` folder.

    UserError: no such file, no such model, weights that do not fit.
    """
    require("metrics", "open_clip")
    import open_clip

    file = pretrained / "open_clip_model.safetensors" if pretrained.is_dir() else pretrained
    if pretrained.is_dir() and not file.is_file():
        file = pretrained / "open_clip_pytorch_model.bin"
    if not file.is_file():
        raise UserError(f"{file}: found no such file, expected CLIP weights; correct --clip-pretrained")
    options = {"pretrained": str(file)}
    if pretrained.is_dir():
        model_name, options = f"local-dir:{pretrained}", {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, _, transform = open_clip.create_model_and_transforms(model_name, **options)
    except Exception as error:  # open_clip, torch and json raise their own kinds
        reason = f"{error}".strip().splitlines()[0]
        raise UserError(
            f"{pretrained}: cannot be read as {model_name} ({reason[:150]}), expected weights of that model; "
            "correct --clip-model or --clip-pretrained"
        ) from error
    model.eval().to(device)

    def compute(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = np.stack([transform(Image.fromarray(image)).numpy() for image in images])
        return in_batches(model.encode_image, pixels, device, batch_size)

    preprocessing = re.sub(r"<function (\w+) at \w+>", r"\1", " ".join(f"{transform}".split()))
    return Extractor(f"CLIP {model_name}", compute, preprocessing, hash_file(file))


def in_batches(
    model: nn.Module | Callable[[Tensor], Tensor], pixels: np.ndarray, device: str, batch_size: int
) -> np.ndarray:
    """(N, C, H, W) through a network without gradients -> float32 (N, D)."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            output = model(torch.from_numpy(pixels[start : start + batch_size]).to(device))
            output = output[0] if isinstance(output, tuple) else output  # torch-fidelity returns a tuple
            parts.append(output.float().cpu().numpy())
    return np.concatenate(parts)


def load_weights(path: Path) -> dict[str, Tensor]:
    """A file of named tensors, read without running code from it. UserError: missing, or anything else."""
    import torch

    weights = load_torch(path, "network weights", "correct the path")
    if not all(map(torch.is_tensor, weights.values())):
        raise UserError(f"{path}: found no table of named tensors, expected network weights")
    return weights


def _save(weights: dict[str, Tensor], path: Path) -> None:
    import torch

    torch.save(weights, path)
