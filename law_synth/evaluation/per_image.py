"""What `law-synth evaluate` measures of every single image: features, and how it follows its mask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.progress import track

from dataset_conversion.system.provenance import require
from law_synth.evaluation.distances import derangement
from law_synth.evaluation.image_sets import ComparedSets, ImageSet
from law_synth.evaluation.mask_metrics import SHUFFLED, column_names, measure_mask
from law_synth.evaluation.options import Evaluate
from law_synth.judging.feature_cache import cached
from law_synth.judging.features import (
    Extractor,
    clip_extractor,
    efficientnet_extractor,
    extract,
    inception_extractor,
    inception_weights,
    most_alike,
    thumbnail_extractor,
    unit_norm,
)
from law_synth.judging.segmenter import Segmenter, judge_of_fold
from nnunet_order.devices import pick_device

SIMILARITIES = {
    "efficientnet": ("EfficientNetLite0", "cosine of EfficientNet-Lite0 features"),
    "thumbnail": ("thumbnail", "correlation of 32 x 32 RGB thumbnails"),
}


@dataclass(frozen=True)
class PerImageResults:
    """Everything that is known about each image; the metrics summarise it."""

    sets: ComparedSets
    references: tuple[str, ...]
    """Names of the real sets to compare with."""
    extractors: dict[str, Extractor]
    """Kind (`thumbnail`, `efficientnet`, `inception`, `clip`) -> the extractor."""
    features: dict[str, dict[str, np.ndarray]]
    """Kind -> name of the image set -> (N, D)."""
    mirrored: dict[str, np.ndarray]
    """Kind in `SIMILARITIES` -> (4, N, D) of the training images `with_mirrored`."""
    segmenter: Segmenter | None
    mask_columns: dict[str, dict[str, np.ndarray]]
    """Name of the image set -> name in `column_names` -> (N,)."""
    missing: dict[str, str]
    """Measurement -> why it could not be taken."""


def measure_images(options: Evaluate, sets: ComparedSets, references: Sequence[str]) -> PerImageResults:
    """Extract the features of all images, and measure how they follow their masks."""
    device = pick_device(options.device)
    missing = missing_metrics(options, sets)
    extractors = make_extractors(options, str(device), missing)
    segmenter = (
        None if options.segmenter is None else judge_of_fold(options.segmenter, device, sets.fold, sets.real)
    )
    compared = {"synthetic": sets.synthetic} | {name: sets.references[name] for name in references}
    # Copies, and the real images that own the masks, are always looked for in `train`.
    with_train = compared | {"train": sets.references["train"]}
    features, mirrored = {}, {}
    for kind, extractor in extractors.items():
        described = compared if kind == "inception" else with_train
        copied = "train" if kind in SIMILARITIES else None
        found = {
            name: features_of(extractor, images, options.batch_size, mirror=name == copied)
            for name, images in described.items()
        }
        features[kind] = {name: of_set[0] for name, of_set in found.items()}
        mirrored |= {kind: found[copied]} if copied else {}
    columns = {
        name: mask_columns(images, shuffled_partners(sets, name, options.seed), segmenter)
        for name, images in compared.items()
    }
    return PerImageResults(
        sets, tuple(references), extractors, features, mirrored, segmenter, columns, missing
    )


def missing_metrics(options: Evaluate, sets: ComparedSets) -> dict[str, str]:
    """Metrics that cannot be measured with these options and data -> why."""
    missing = {}
    if not sets.pairs:
        missing["CLIP-I"] = "no synthetic image was made from the mask of a real image that the model saw"
    elif options.clip_pretrained is None:
        missing["CLIP-I"] = "no --clip-pretrained PATH was given"
    if options.segmenter is None:
        missing["mask agreement"] = "no --segmenter MODEL_FOLDER was given"
    return missing


def make_extractors(options: Evaluate, device: str, missing: dict[str, str]) -> dict[str, Extractor]:
    """The extractors that are available; `missing` gets the reasons for the others."""
    require("metrics", "torch_fidelity")
    size = options.batch_size
    extractors = {"thumbnail": thumbnail_extractor(), "efficientnet": efficientnet_extractor(device, size)}
    try:
        weights = inception_weights(options.inception)
    except ConnectionError as error:
        missing["FID and KID"] = f"no Inception weights: {error}; give --inception PATH"
    else:
        extractors["inception"] = inception_extractor(weights, device, size)
    if "CLIP-I" not in missing:
        extractors["clip"] = clip_extractor(options.clip_model, options.clip_pretrained, device, size)
    return extractors


def features_of(extractor: Extractor, images: ImageSet, batch_size: int, mirror: bool) -> np.ndarray:
    """Features (1, N, D) of all images, (4, N, D) `with_mirrored`. Those of real sets are cached."""

    def compute() -> np.ndarray:
        batches = track(
            images.batches(batch_size),
            f"{extractor.name}, {images.name}",
            total=-(-len(images) // batch_size),
            transient=True,
        )
        return extract(extractor, batches, mirror)

    if images.name == "synthetic":
        return compute()
    return keep(images, extractor.key + " mirrored" * mirror, compute)


def mask_columns(
    images: ImageSet, partners: np.ndarray | None, segmenter: Segmenter | None
) -> dict[str, np.ndarray]:
    """How each image follows its own mask and its partner's: `column_names` -> (N,); NaN where unknown."""
    names = column_names(images.dataset.regions)

    def compute() -> np.ndarray:
        rows = []
        for index in track(range(len(images)), f"masks, {images.name}", transient=True):
            image, mask = images.read(index)
            found = None if segmenter is None else images.find(segmenter, index, image)
            row = measure_mask(images.view, image, mask, found)
            if partners is not None:
                other = images.mask(int(partners[index]), mask.shape)
                row |= measure_mask(images.view, image, other, found, SHUFFLED)
            rows.append([row.get(name, float("nan")) for name in names])
        return np.array(rows)

    judge = segmenter.hash if segmenter else "none"
    order = "none" if partners is None else partners.tolist()
    key = f"layout {names} {judge} {order}"
    values = compute() if images.name == "synthetic" else keep(images, key, compute)
    return dict(zip(names, values.T, strict=True))


def shuffled_partners(sets: ComparedSets, name: str, seed: int) -> np.ndarray | None:
    """Whose mask each image is compared with for scale: never its own, nor one of the same patient."""
    return derangement(sets.groups(name), seed)


def keep(images: ImageSet, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """`compute()`, or what an earlier run computed for files of the same content."""
    return cached(hashlib.sha256(f"{images.content} {key}".encode()).hexdigest(), compute)


def nearest_training(
    results: PerImageResults, kind: str, set_: str = "synthetic"
) -> tuple[np.ndarray, np.ndarray]:
    """Index and similarity (N,) of the training image that, mirrored or not, is most like each image.

    A training image is not compared with itself, nor with its own mirror images.
    """
    queries = unit_norm(results.features[kind][set_])
    itself = np.arange(len(queries)) if set_ == "train" else None
    return most_alike(queries[None], unit_norm(results.mirrored[kind]), itself)


def clip_similarities(results: PerImageResults) -> np.ndarray:
    """(N,) cosine of each synthetic image and the real image that owns its mask; NaN where unknown."""
    return clip_cosines(results, results.sets.pairs)


def clip_cosines(results: PerImageResults, pairs: list[tuple[int, int]]) -> np.ndarray:
    values = np.full(len(results.sets.synthetic), np.nan)
    if "clip" not in results.features or not pairs:
        return values
    unit = {name: unit_norm(features) for name, features in results.features["clip"].items()}
    synthetic, real = (list(indices) for indices in zip(*pairs, strict=True))
    values[synthetic] = (unit["synthetic"][synthetic] * unit["train"][real]).sum(1)
    return values
