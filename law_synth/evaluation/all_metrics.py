"""All metrics of `law-synth evaluate`. A metric of a whole image set is one entry here, and its formula."""

from __future__ import annotations

from collections.abc import Callable

from law_synth.evaluation.copying import similarity_to_training
from law_synth.evaluation.mask_means import mask_means
from law_synth.evaluation.measurement import Measurement
from law_synth.evaluation.per_image import PerImageResults
from law_synth.evaluation.realism import clip_similarity, diversity, feature_distances, kid

METRICS: tuple[Callable[[PerImageResults, int], list[Measurement]], ...] = (
    feature_distances,
    kid,
    clip_similarity,
    diversity,
    mask_means,
    similarity_to_training,
)
"""Each takes the results and a seed, and returns nothing where its features are missing."""


def measure_all(results: PerImageResults, seed: int) -> list[Measurement]:
    """Every number that can be measured, in the order of the table."""
    return [measurement for metric in METRICS for measurement in metric(results, seed)]
