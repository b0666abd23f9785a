"""From what is known about every image to the numbers of `law-synth evaluate`, each with N and protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from law_synth.evaluation.findings import (
    COPY_MEASURES,
    Findings,
    clip_cosines,
    clip_similarities,
    column,
    nearest_training,
)
from law_synth.evaluation.metrics import (
    NEAR_COPY_PERCENTILE,
    derangement,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    near_copies,
)
from nnunet_order.metrics import interval, mean_over_cases, resampled_means

SMALL_LESION = 0.1  # share of the image
SPLITS = 10  # random halves of the real set
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's and the paper's defaults

COPY_STATISTICS = {"near copies": "share", "mean similarity": "mean", "95th percentile": "p95", "max": "max"}
GAUSSIANS = (
    "squared Fréchet distance of fitted Gaussians, biased upwards where N is small: compare at equal N only"
)
EMPTY_MASKS = "mask and prediction both empty: left out, one of them empty: 0"
BOOTSTRAP = "interval: 95 %, percentile bootstrap over images taken as independent"


@dataclass(frozen=True)
class Measure:
    """One number of the table."""

    section: str
    name: str
    images: str
    """The images that were measured: `synthetic`, or real ones for scale."""
    against: str
    """What they are compared with, or which statistic it is."""
    value: float
    n: dict[str, int]
    """Number of images, per set that enters."""
    protocol: str
    low: float | None = None
    high: float | None = None


def measure_all(findings: Findings, seed: int) -> list[Measure]:
    """Every measure that can be taken, in the order of the table."""
    measures = [*distances(findings, "efficientnet", seed), *distances(findings, "inception", seed)]
    measures += [*kid(findings), *clip_similarity_measures(findings, seed), *diversity(findings)]
    if findings.segmenter is not None:
        measures += agreement(findings, seed)
    measures += contrasts(findings, seed)
    for kind in COPY_MEASURES:
        measures += memorisation(findings, kind)
    return measures


def distances(findings: Findings, kind: str, seed: int) -> list[Measure]:
    """Fréchet distances (and kernel distances, but for Inception) to each real set, and their scale."""
    if kind not in findings.features:
        return []
    features, extractor = findings.features[kind], findings.extractors[kind]
    about = f"{extractor.name} features after {extractor.preprocessing}; {_size_note(findings)}"
    functions = {f"FD-{extractor.name}": (frechet_distance, GAUSSIANS)}
    if extractor.name == "Inception":
        functions = {"FID": functions["FD-Inception"]}
    if kind == "efficientnet":
        kernel = "unbiased squared MMD, kernel (x.y / D + 1)^3, all pairs (KID's estimator)"
        functions[f"KD-{extractor.name}"] = (kernel_distance, kernel)
    measures = []
    for name, (function, meaning) in functions.items():
        for reference in findings.references:
            value = function(features["synthetic"], features[reference])
            n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
            measures.append(Measure("Realism", name, "synthetic", reference, value, n, f"{meaning}; {about}"))
        measures += _scale(name, function, features, findings.references[0], seed)
    return measures


def _scale(
    name: str, function: Callable, features: Mapping[str, np.ndarray], reference: str, seed: int
) -> list[Measure]:
    """The distance of synthetic images to a half of the real set, and of the other half, all of equal N."""
    synthetic, real = features["synthetic"], features[reference]
    count = min(len(synthetic), len(real) // 2)
    if count < 2:
        return []
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"synthetic": [], f"scale: {reference}": []}
    for _ in range(SPLITS):
        order = generator.permutation(len(real))
        half, other = real[order[:count]], real[order[count : 2 * count]]
        chosen = synthetic[generator.choice(len(synthetic), count, replace=False)]
        for values, part in zip(found.values(), (chosen, other), strict=True):
            values.append(function(part, half))
    protocol = (
        f"mean, lowest and highest of {SPLITS} random splits, equal N on both sides; scale: the other half"
    )
    return [
        Measure(
            "Realism",
            name,
            images,
            f"half of {reference}",
            float(np.mean(values)),
            {"each side": count},
            protocol,
            min(values),
            max(values),
        )
        for images, values in found.items()
    ]


def kid(findings: Findings) -> list[Measure]:
    """KID by torch-fidelity; called KD-Inception unless the weights are the real ones."""
    if "inception" not in findings.features:
        return []
    import torch
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    features, extractor = findings.features["inception"], findings.extractors["inception"]
    name = "KID" if extractor.name == "Inception" else f"KD-{extractor.name}"
    measures = []
    for reference in findings.references:
        pair = [torch.from_numpy(features[set_]) for set_ in ("synthetic", reference)]
        size = min(KID_SUBSET_SIZE, *map(len, pair))
        if size < 2:
            continue
        result = kid_features_to_metric(*pair, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
        protocol = (
            f"torch-fidelity, mean of {KID_SUBSETS} subsets of {size}, their standard deviation "
            f"{result[KEY_METRIC_KID_STD]:.2g} (0 where a subset is the whole set)"
        )
        n = {"synthetic": len(pair[0]), reference: len(pair[1])}
        measures.append(
            Measure("Realism", name, "synthetic", reference, result[KEY_METRIC_KID_MEAN], n, protocol)
        )
    return measures


def clip_similarity_measures(findings: Findings, seed: int) -> list[Measure]:
    """CLIP-I, and for scale the same with another mask's real image."""
    pairs = findings.subject.pairs
    if "clip" not in findings.features:
        return []
    extractor = findings.extractors["clip"]
    protocol = (
        f"mean cosine of a synthetic image and the real image that owns its mask; {extractor.name}, weights "
        f"{extractor.weights_sha256[:12]}, {extractor.preprocessing}; {BOOTSTRAP}"
    )
    n = {"pairs": len(pairs)}
    measures = [
        _mean(
            "Realism", "CLIP-I", "synthetic", "own real image", clip_similarities(findings), n, protocol, seed
        )
    ]
    partners = derangement([real for _, real in pairs], seed)
    if partners is not None:
        others = [(pairs[i][0], pairs[partners[i]][1]) for i in range(len(pairs))]
        values = clip_cosines(findings, others)
        scale = "for scale: as CLIP-I, with the real image of another mask"
        measures.append(_mean("Realism", "CLIP-I", "synthetic", "scale: another's", values, n, scale, seed))
    return measures


def agreement(findings: Findings, seed: int) -> list[Measure]:
    """Dice and IoU of the judge with own and shuffled masks, small lesions apart, and the real ceiling."""
    measures = []
    for metric, name in (("dice", "mDice"), ("iou", "mIoU")):
        for set_, layout in findings.layouts.items():
            own, shuffled = column(layout, metric), column(layout, f"{metric}_shuffled")
            small = column(layout, "lesion_ratio") < SMALL_LESION
            ceiling = "" if set_ == "synthetic" else f"ceiling: {judged_before(findings, set_)}; "
            protocol = (
                f"{ceiling}per-image foreground {name[1:]} of mask and prediction of "
                f"{findings.segmenter.name}; {EMPTY_MASKS}; "
                f"small: lesions under {SMALL_LESION:.0%} of the image; {BOOTSTRAP}"
            )
            parts = {"own mask": own, "shuffled": shuffled, "own - shuffled": own - shuffled}
            parts |= {"small, own": own[small], "small, own - shuffled": (own - shuffled)[small]}
            images = "synthetic" if set_ == "synthetic" else f"ceiling: {set_}"
            measures += _means("Masks", name, images, parts, protocol, seed)
    return measures


def judged_before(findings: Findings, reference: str) -> str:
    """How many images of a real set the judge was trained on, in words."""
    images, judge = findings.subject.references[reference], findings.segmenter
    if judge.train_dataset != images.dataset.folder.resolve().name:
        return "the judge was trained on another data set"
    if judge.train_cases is None:
        return "unknown how many of these images the judge was trained on"
    return f"the judge was trained on {len(set(images.ids) & set(judge.train_cases))} of these {len(images)}"


def contrasts(findings: Findings, seed: int) -> list[Measure]:
    """Colour contrast of mask and ring, own and shuffled masks, synthetic and real."""
    measures = []
    for set_, layout in findings.layouts.items():
        own, shuffled = column(layout, "contrast"), column(layout, "contrast_shuffled")
        protocol = (
            "Euclidean RGB distance (0 to 1.73) of the mean colours inside the mask and in a ring around it, "
            "a tenth of the equivalent diameter wide, at least 2 px; "
            f"{int(np.isnan(own).sum())} empty or full masks left out; {BOOTSTRAP}"
        )
        parts = {"own mask": own, "shuffled": shuffled, "own - shuffled": own - shuffled}
        images = "synthetic" if set_ == "synthetic" else f"scale: {set_}"
        measures += _means("Masks", "contrast", images, parts, protocol, seed)
    return measures


def memorisation(findings: Findings, kind: str) -> list[Measure]:
    """How like their nearest training images the synthetic ones are, and the share of near copies."""
    label, what = COPY_MEASURES[kind]
    real = nearest_training(findings, kind, "train")[1]
    measures = []
    for set_ in ("synthetic", "held-out"):
        if set_ not in findings.features[kind]:
            continue
        found = near_copies(nearest_training(findings, kind, set_)[1], real)
        n = {set_: len(findings.features[kind][set_]), "train": len(real)}
        images = "synthetic" if set_ == "synthetic" else f"scale: {set_}"
        protocol = (
            f"nearest training image by {what}, the image also mirrored along either axis or both; near "
            f"copies: share above {found['threshold']:.4f}, "
            f"the {NEAR_COPY_PERCENTILE}th percentile of training images and their nearest other one"
        )
        measures += [
            Measure("Copies", label, images, part, found[key], n, protocol)
            for part, key in COPY_STATISTICS.items()
        ]
    return measures


def diversity(findings: Findings) -> list[Measure]:
    """Mean pairwise feature distance of the synthetic set over that of each real set."""
    features = findings.features["efficientnet"]
    synthetic = mean_pairwise_distance(features["synthetic"])
    protocol = "mean Euclidean distance of EfficientNet-Lite0 features over all pairs, over the real set's"
    measures = []
    for reference in findings.references:
        real = mean_pairwise_distance(features[reference])
        ratio = synthetic / real if real > 0 else float("nan")
        n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
        measures.append(Measure("Realism", "diversity", "synthetic", reference, ratio, n, protocol))
    return measures


def _mean(
    section: str,
    name: str,
    images: str,
    against: str,
    values: np.ndarray,
    n: dict[str, int],
    protocol: str,
    seed: int,
) -> Measure:
    """A mean over images with its bootstrap interval; NaN values are left out."""
    low, high = interval(resampled_means(values[:, None], seed))
    return Measure(section, name, images, against, mean_over_cases(values[:, None]), n, protocol, low, high)


def _means(
    section: str, name: str, images: str, parts: Mapping[str, np.ndarray], protocol: str, seed: int
) -> list[Measure]:
    """One mean for each part that holds a number, with the count of its images."""
    measures = []
    for against, values in parts.items():
        if count := int(np.isfinite(values).sum()):
            n = {images: count}
            measures.append(_mean(section, name, images, against, values, n, protocol, seed))
    return measures


def _size_note(findings: Findings) -> str:
    images = findings.subject.references["train"]
    if images.size is None:
        return "all images as stored"
    return f"real images at the synthetic ones' size {images.size[1]} x {images.size[0]} (Lanczos, no crop)"
