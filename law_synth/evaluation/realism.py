"""How similar are the sets of synthetic and of real images? Each number has its N and its protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from law_synth.evaluation.distances import (
    derangement,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
)
from law_synth.evaluation.measurement import BOOTSTRAP, Measurement, mean_measurement
from law_synth.evaluation.per_image import (
    PerImageResults,
    clip_cosines,
    clip_similarities,
)

SPLITS = 10  # random halves of the real set
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's and the paper's defaults

GAUSSIANS = (
    "squared Fréchet distance of fitted Gaussians, biased upwards where N is small: compare at equal N only"
)


def feature_distances(results: PerImageResults, seed: int) -> list[Measurement]:
    """Distances of EfficientNet and Inception features to each real set, and their scale."""
    return [
        *_feature_distances(results, "efficientnet", seed),
        *_feature_distances(results, "inception", seed),
    ]


def _feature_distances(results: PerImageResults, kind: str, seed: int) -> list[Measurement]:
    """Fréchet distances; kernel distances of EfficientNet features, too."""
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
    measurements = []
    for name, (function, meaning) in functions.items():
        for reference in results.references:
            value = function(features["synthetic"], features[reference])
            n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
            measurements.append(
                Measurement("Realism", name, "synthetic", reference, value, n, f"{meaning}; {about}")
            )
        measurements += _scale(name, function, features, results.references[0], seed)
    return measurements


def _scale(
    name: str, function: Callable, features: Mapping[str, np.ndarray], reference: str, seed: int
) -> list[Measurement]:
    """Distance of synthetic images to one half of the real set, and that of the other half, at equal N."""
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


def kid(results: PerImageResults, seed: int) -> list[Measurement]:
    """KID by torch-fidelity; it is called KD-Inception unless the weights are the published ones."""
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
    measurements = []
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
        measurements.append(
            Measurement("Realism", name, "synthetic", reference, result[KEY_METRIC_KID_MEAN], n, protocol)
        )
    return measurements


def clip_similarity(results: PerImageResults, seed: int) -> list[Measurement]:
    """CLIP-I; for scale, the same with the real image of another mask."""
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
        mean_measurement("Realism", "CLIP-I", "synthetic", against, values, groups, n, note, seed)
        for against, values, note in found
    ]


def diversity(results: PerImageResults, seed: int) -> list[Measurement]:
    """Mean pairwise feature distance of the synthetic set over that of each real set."""
    features = results.features["efficientnet"]
    synthetic = mean_pairwise_distance(features["synthetic"])
    protocol = "mean Euclidean distance of EfficientNet-Lite0 features over all pairs, over the real set's"
    measurements = []
    for reference in results.references:
        real = mean_pairwise_distance(features[reference])
        ratio = synthetic / real if real > 0 else float("nan")
        n = {set_: len(features[set_]) for set_ in ("synthetic", reference)}
        measurements.append(Measurement("Realism", "diversity", "synthetic", reference, ratio, n, protocol))
    return measurements


def _size_note(results: PerImageResults) -> str:
    images = results.sets.references["train"]
    size = (
        "all images as stored"
        if images.size is None
        else f"real images at the synthetic ones' size {images.size[1]} x {images.size[0]} (Lanczos, no crop)"
    )
    return "; ".join([size, *images.seen_as])
