"""Are synthetic images copies of training images?"""

from __future__ import annotations

from law_synth.evaluation.distances import NEAR_COPY_PERCENTILE, near_copies
from law_synth.evaluation.measurement import Measurement
from law_synth.evaluation.per_image import SIMILARITIES, PerImageResults, nearest_training

COPY_STATISTICS = {"near copies": "share", "mean similarity": "mean", "95th percentile": "p95", "max": "max"}


def similarity_to_training(results: PerImageResults, seed: int) -> list[Measurement]:
    """Similarity of synthetic images to training images, by each of `SIMILARITIES`."""
    return [measurement for kind in SIMILARITIES for measurement in _similarity_to_training(results, kind)]


def _similarity_to_training(results: PerImageResults, kind: str) -> list[Measurement]:
    """Similarity of synthetic images to their nearest training images, and the share of near copies."""
    label, what = SIMILARITIES[kind]
    real = nearest_training(results, kind, "train")[1]
    measurements = []
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
        measurements += [
            Measurement("Copies", label, images, part, found[key], n, protocol)
            for part, key in COPY_STATISTICS.items()
        ]
    return measurements
