"""What `law-synth evaluate` finds out about every single image; `measures` makes numbers of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from dataset_conversion.system.provenance import require
from law_synth.devices import pick_device
from law_synth.evaluation.distances import contrast, derangement
from law_synth.evaluation.image_sets import ImageSet, Subject
from law_synth.judging.agreement import MEAN, overlaps, region_masks
from law_synth.judging.features import (
    Extractor,
    cached,
    clip_extractor,
    efficientnet_extractor,
    extract,
    inception_extractor,
    inception_weights,
    most_alike,
    thumbnail_extractor,
    unit_norm,
)
from law_synth.judging.segmenter import judge_of_fold

if TYPE_CHECKING:
    from law_synth.evaluation.evaluate import Evaluate
    from law_synth.judging.segmenter import Segmenter

COPY_MEASURES = {
    "efficientnet": ("EfficientNetLite0", "cosine of EfficientNet-Lite0 features"),
    "thumbnail": ("thumbnail", "correlation of 32 x 32 RGB thumbnails"),
}
# What `layout` knows of an image: of its mask as a whole, and where there are several regions of each.
LAYOUT = ("lesion_ratio", "contrast", "contrast_shuffled", "dice", "iou", "dice_shuffled", "iou_shuffled")
SHUFFLED = "_shuffled"  # of names in `LAYOUT`


@dataclass(frozen=True)
class Findings:
    """Everything that is known about every single image; `measures` are made of it."""

    subject: Subject
    references: tuple[str, ...]
    """Names of the real sets to compare with."""
    extractors: dict[str, Extractor]
    """Kind (`thumbnail`, `efficientnet`, `inception`, `clip`) -> the extractor."""
    features: dict[str, dict[str, np.ndarray]]
    """Kind -> name of the image set -> (N, D)."""
    mirrored: dict[str, np.ndarray]
    """Kind in `COPY_MEASURES` -> (4, N, D) of the training images `with_mirrored`."""
    segmenter: Segmenter | None
    layouts: dict[str, dict[str, np.ndarray]]
    """Name of the image set -> name in `layout_names` -> (N,)."""
    skipped: dict[str, str]
    """Measure -> why it could not be taken."""


def find(options: Evaluate, subject: Subject, references: Sequence[str]) -> Findings:
    """Extract features of all images and look how they follow their masks."""
    device = pick_device(options.device)
    skipped = left_out(options, subject)
    extractors = make_extractors(options, str(device), skipped)
    segmenter = (
        None
        if options.segmenter is None
        else judge_of_fold(options.segmenter, device, subject.fold, subject.real)
    )
    compared = {"synthetic": subject.synthetic} | {name: subject.references[name] for name in references}
    # Copies, and the real images that own the masks, are looked for in `train` whatever is compared.
    with_train = compared | {"train": subject.references["train"]}
    features, mirrored = {}, {}
    for kind, extractor in extractors.items():
        sets = compared if kind == "inception" else with_train
        copied = "train" if kind in COPY_MEASURES else None
        found = {
            name: features_of(extractor, images, options.batch_size, mirror=name == copied)
            for name, images in sets.items()
        }
        features[kind] = {name: of_set[0] for name, of_set in found.items()}
        mirrored |= {kind: found[copied]} if copied else {}
    layouts = {
        name: layout(images, shuffled_partners(subject, name, options.seed), segmenter)
        for name, images in compared.items()
    }
    return Findings(subject, tuple(references), extractors, features, mirrored, segmenter, layouts, skipped)


def left_out(options: Evaluate, subject: Subject) -> dict[str, str]:
    """Measures that cannot be taken with these options and data -> why."""
    skipped = {}
    if not subject.pairs:
        skipped["CLIP-I"] = "no synthetic image has the own mask of a real image that the model saw"
    elif options.clip_pretrained is None:
        skipped["CLIP-I"] = "no --clip-pretrained PATH was given"
    if options.segmenter is None:
        skipped["mask agreement"] = "no --segmenter MODEL_FOLDER was given"
    return skipped


def make_extractors(options: Evaluate, device: str, skipped: dict[str, str]) -> dict[str, Extractor]:
    """The extractors that can be had; why another cannot goes into `skipped`."""
    require("metrics", "torch_fidelity")
    size = options.batch_size
    extractors = {"thumbnail": thumbnail_extractor(), "efficientnet": efficientnet_extractor(device, size)}
    try:
        weights = inception_weights(options.inception)
    except ConnectionError as error:
        skipped["FID and KID"] = f"no Inception weights: {error}; give --inception PATH"
    else:
        extractors["inception"] = inception_extractor(weights, device, size)
    if "CLIP-I" not in skipped:
        extractors["clip"] = clip_extractor(options.clip_model, options.clip_pretrained, device, size)
    return extractors


def features_of(extractor: Extractor, images: ImageSet, batch_size: int, mirror: bool) -> np.ndarray:
    """Features (1, N, D) of all images, (4, N, D) `with_mirrored`; the cache keeps real sets'."""

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


def layout_names(regions: Sequence[str]) -> tuple[str, ...]:
    """`LAYOUT`, and of several regions the same of each: `dice_kidney`, `dice_shuffled_kidney`."""
    return (*LAYOUT, *(f"{name}_{region}" for region in several(regions) for name in LAYOUT))


def several(regions: Sequence[str]) -> tuple[str, ...]:
    """The regions to tell apart: none where there is only one."""
    return tuple(regions) if len(regions) > 1 else ()


def layout(
    images: ImageSet, partners: np.ndarray | None, segmenter: Segmenter | None
) -> dict[str, np.ndarray]:
    """How each image follows its mask and that of its partner: `layout_names` -> (N,); NaN if unknown."""
    names = layout_names(tuple(images.dataset.regions))

    def compute() -> np.ndarray:
        rows = []
        for index in track(range(len(images)), f"masks, {images.name}", transient=True):
            image, mask = images.read(index)
            found = None if segmenter is None else images.find(segmenter, index, image)
            row = layout_row(images, image, mask, found)
            if partners is not None:
                other = images.mask(int(partners[index]), mask.shape)
                row |= layout_row(images, image, other, found, SHUFFLED)
            rows.append([row.get(name, float("nan")) for name in names])
        return np.array(rows)

    judge = segmenter.hash if segmenter else "none"
    order = "none" if partners is None else partners.tolist()
    key = f"layout {names} {judge} {order}"
    values = compute() if images.name == "synthetic" else keep(images, key, compute)
    return dict(zip(names, values.T, strict=True))


def layout_row(
    images: ImageSet, image: np.ndarray, mask: np.ndarray, found: np.ndarray | None, suffix: str = ""
) -> dict[str, float]:
    """`layout` of one image and one mask, with `suffix` in its names."""
    regions = region_masks(mask, images.view)
    masks = {"": mask > 0} | {f"_{name}": regions[name] for name in several(tuple(regions))}
    row = {f"contrast{suffix}{region}": contrast(image, inside) for region, inside in masks.items()}
    row |= {f"lesion_ratio{suffix}{region}": float(inside.mean()) for region, inside in masks.items()}
    if found is not None:
        scores = overlaps(found, mask, images.view)
        for region in masks:
            of_region = scores[region[1:] or MEAN]
            row |= {f"dice{suffix}{region}": of_region["Dice"], f"iou{suffix}{region}": of_region["IoU"]}
    return row


def shuffled_partners(subject: Subject, name: str, seed: int) -> np.ndarray | None:
    """Whose mask each image is compared with to tell chance: never its own, nor one of the same patient."""
    return derangement(subject.groups(name), seed)


def keep(images: ImageSet, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """`compute()`, or its result of an earlier run on files of the same content."""
    return cached(hashlib.sha256(f"{images.content} {key}".encode()).hexdigest(), compute)


def nearest_training(findings: Findings, kind: str, set_: str = "synthetic") -> tuple[np.ndarray, np.ndarray]:
    """Index and similarity (N,) of the training image that, mirrored or not, is most like each image.

    Not itself for `train`, mirrored or not.
    """
    queries = unit_norm(findings.features[kind][set_])
    itself = np.arange(len(queries)) if set_ == "train" else None
    return most_alike(queries[None], unit_norm(findings.mirrored[kind]), itself)


def clip_similarities(findings: Findings) -> np.ndarray:
    """(N,) cosine of each synthetic image and the real image that owns its mask; NaN where unknown."""
    return clip_cosines(findings, findings.subject.pairs)


def clip_cosines(findings: Findings, pairs: list[tuple[int, int]]) -> np.ndarray:
    values = np.full(len(findings.subject.synthetic), np.nan)
    if "clip" not in findings.features or not pairs:
        return values
    unit = {name: unit_norm(features) for name, features in findings.features["clip"].items()}
    synthetic, real = (list(indices) for indices in zip(*pairs, strict=True))
    values[synthetic] = (unit["synthetic"][synthetic] * unit["train"][real]).sum(1)
    return values
