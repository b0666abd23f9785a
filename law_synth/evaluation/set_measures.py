"""From what is known about every image to the numbers of `law-synth evaluate`, each with N and protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from law_synth.evaluation.distances import (
    NEAR_COPY_PERCENTILE,
    derangement,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    near_copies,
)
from law_synth.evaluation.mask_measures import agreement, contrasts
from law_synth.evaluation.measurement import BOOTSTRAP, Measurement, mean_measure
from law_synth.evaluation.per_image import (
    COPY_MEASURES,
    PerImageResults,
    clip_cosines,
    clip_similarities,
    nearest_training,
)

SPLITS = 10  # random halves of the real set
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's and the paper's defaults

COPY_STATISTICS = {"near copies": "share", "mean similarity": "mean", "95th percentile": "p95", "max": "max"}
GAUSSIANS = (
    "squared Fréchet distance of fitted Gaussians, biased upwards where N is small: compare at equal N only"
)


def measure_all(results: PerImageResults, seed: int) -> list[Measurement]:
    """Every measure that can be taken, in the order of the table."""
    measures = [*distances(results, "efficientnet", seed), *distances(results, "inception", seed)]
    measures += [*kid(results), *clip_similarity_measures(results, seed), *diversity(results)]
    if results.segmenter is not None:
        measures += agreement(results, seed)
    measures += contrasts(results, seed)
    for kind in COPY_MEASURES:
        measures += memorisation(results, kind)
    return measures


def distances(results: PerImageResults, kind: str, seed: int) -> list[Measurement]:
    """Fréchet distances (and kernel distances, but for Inception) to each real set, and their scale."""
    if kind not in results.features:
        return []
    features, extractor = results.features[kind], results.extractors[kind]
    about = f"{extractor.name} features after {extractor.preprocessing}; {_size_note(results)}"
    functions = {f"FD-{extractor.name}": (frechet_distance, GAUSSIANS)}
    if extractor.name == "Inception":
        functions = {"FID": functions["FD-Inception"]}
    if kind == "efficientnet":
        kernel = "unbiased squared MMD, kernel (x.y / D + 1)^3, all pairs (KID's estimator)"
        functions[f"KD-{extractor.name}"] = (kernel_distance, kernel)
    measures = []
    for name, (function, meaning) in functions.items():
        for reference in results.references:
            value = function(features["synthetic"], features[reference])
            n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
            measures.append(
                Measurement("Realism", name, "synthetic", reference, value, n, f"{meaning}; {about}")
            )
        measures += _scale(name, function, features, results.references[0], seed)
    return measures


def _scale(
    name: str, function: Callable, features: Mapping[str, np.ndarray], reference: str, seed: int
) -> list[Measurement]:
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
        Measurement(
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


def kid(results: PerImageResults) -> list[Measurement]:
    """KID by torch-fidelity; called KD-Inception unless the weights are the real ones."""
    if "inception" not in results.features:
        return []
    import torch
    from torch_fidelity.metric_kid import (
        KEY_METRIC_KID_MEAN,
        KEY_METRIC_KID_STD,
        kid_features_to_metric,
    )

    features, extractor = results.features["inception"], results.extractors["inception"]
    name = "KID" if extractor.name == "Inception" else f"KD-{extractor.name}"
    measures = []
    for reference in results.references:
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
            Measurement("Realism", name, "synthetic", reference, result[KEY_METRIC_KID_MEAN], n, protocol)
        )
    return measures


def clip_similarity_measures(results: PerImageResults, seed: int) -> list[Measurement]:
    """CLIP-I, and for scale the same with another mask's real image."""
    pairs = results.sets.pairs
    if "clip" not in results.features:
        return []
    extractor = results.extractors["clip"]
    protocol = (
        f"mean cosine of a synthetic image and the real image that owns its mask; {extractor.name}, weights "
        f"{extractor.weights_sha256[:12]}, {extractor.preprocessing}; {BOOTSTRAP}"
    )
    n, groups = {"pairs": len(pairs)}, results.sets.groups("synthetic")
    own = clip_similarities(results)
    found = [("own real image", own, protocol)]
    of_train = results.sets.groups("train")
    partners = derangement([of_train[real] for _, real in pairs], seed)
    if partners is not None:
        others = [(pairs[i][0], pairs[partners[i]][1]) for i in range(len(pairs))]
        scale = "for scale: as CLIP-I, with the real image of another mask"
        found.append(("scale: another's", clip_cosines(results, others), scale))
    return [
        mean_measure("Realism", "CLIP-I", "synthetic", against, values, groups, n, note, seed)
        for against, values, note in found
    ]


def memorisation(results: PerImageResults, kind: str) -> list[Measurement]:
    """How like their nearest training images the synthetic ones are, and the share of near copies."""
    label, what = COPY_MEASURES[kind]
    real = nearest_training(results, kind, "train")[1]
    measures = []
    for set_ in ("synthetic", "held-out"):
        if set_ not in results.features[kind]:
            continue
        found = near_copies(nearest_training(results, kind, set_)[1], real)
        n = {set_: len(results.features[kind][set_]), "train": len(real)}
        images = "synthetic" if set_ == "synthetic" else f"scale: {set_}"
        protocol = (
            f"nearest training image by {what}, also mirrored along either axis or both; near copies: share "
            f"above {found['threshold']:.4f}, the {NEAR_COPY_PERCENTILE}th percentile of training images and "
            "their nearest other one"
        )
        measures += [
            Measurement("Copies", label, images, part, found[key], n, protocol)
            for part, key in COPY_STATISTICS.items()
        ]
    return measures


def diversity(results: PerImageResults) -> list[Measurement]:
    """Mean pairwise feature distance of the synthetic set over that of each real set."""
    features = results.features["efficientnet"]
    synthetic = mean_pairwise_distance(features["synthetic"])
    protocol = "mean Euclidean distance of EfficientNet-Lite0 features over all pairs, over the real set's"
    measures = []
    for reference in results.references:
        real = mean_pairwise_distance(features[reference])
        ratio = synthetic / real if real > 0 else float("nan")
        n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
        measures.append(Measurement("Realism", "diversity", "synthetic", reference, ratio, n, protocol))
    return measures


def _size_note(results: PerImageResults) -> str:
    images = results.sets.references["train"]
    size = (
        "all images as stored"
        if images.size is None
        else f"real images at the synthetic ones' size {images.size[1]} x {images.size[0]} (Lanczos, no crop)"
    )
    return "; ".join([size, *images.seen_as])
