"""Do images follow their masks? Means of the mask metrics, over all regions and for each region."""

from __future__ import annotations

import numpy as np

from law_synth.evaluation.mask_metrics import JUDGED, LESION_RATIO, SHUFFLED, UNJUDGED, MaskMetric, several
from law_synth.evaluation.measurement import BOOTSTRAP, Measurement, mean_measurements
from law_synth.evaluation.per_image import PerImageResults

SMALL_LESION = 0.1  # share of the image
EMPTY_MASKS = "mask and prediction both empty: left out, one of them empty: 0"


def mask_means(results: PerImageResults, seed: int) -> list[Measurement]:
    """Means with own and shuffled masks, of synthetic images and of real ones for scale.

    The agreement with a judge comes first, where there is a judge.
    """
    measurements = []
    for metrics in (JUDGED, UNJUDGED) if results.segmenter is not None else (UNJUDGED,):
        for region in ("", *several(results.sets.real.regions)):
            for metric in metrics:
                for set_ in results.mask_columns:
                    measurements += _means(results, metric, region, set_, seed)
    return measurements


def _means(
    results: PerImageResults, metric: MaskMetric, region: str, set_: str, seed: int
) -> list[Measurement]:
    """One metric of one region (empty: of all regions together) over one image set."""
    columns, suffix = results.mask_columns[set_], f"_{region}" if region else ""
    own, shuffled = columns[metric.column + suffix], columns[metric.column + SHUFFLED + suffix]
    parts = {"own mask": own, "shuffled": shuffled, "own - shuffled": own - shuffled}
    is_judged = metric in JUDGED
    if is_judged and not several(results.sets.real.regions):
        small = (columns[LESION_RATIO] > 0) & (columns[LESION_RATIO] < SMALL_LESION)
        parts |= {
            "small, own": np.where(small, own, np.nan),
            "small, own - shuffled": np.where(small, own - shuffled, np.nan),
        }
    if is_judged:
        protocol = _judged_protocol(results, metric, region, set_)
    else:
        protocol = f"{metric.protocol}; {int(np.isnan(own).sum())} empty or full masks left out; {BOOTSTRAP}"
    images = "synthetic" if set_ == "synthetic" else f"{'ceiling' if is_judged else 'scale'}: {set_}"
    name, groups = f"{metric.name} {region}".strip(), results.sets.groups(set_)
    return mean_measurements("Masks", name, images, parts, groups, protocol, seed)


def _judged_protocol(results: PerImageResults, metric: MaskMetric, region: str, set_: str) -> str:
    regions = several(results.sets.real.regions)
    what = f"mean over {', '.join(regions)} of" if regions and not region else f"{region or 'foreground'}"
    small = "" if regions else f"small: lesions under {SMALL_LESION:.0%} of the image; "
    ceiling = "" if set_ == "synthetic" else f"ceiling: {judged_before(results, set_)}; "
    about = f"per-image {what} {metric.protocol} of {results.segmenter.name}"
    return f"{ceiling}{about}; {EMPTY_MASKS}; {small}{BOOTSTRAP}"


def judged_before(results: PerImageResults, reference: str) -> str:
    """How many images of a real set the judge was trained on, in words."""
    images, judge = results.sets.references[reference], results.segmenter
    if judge.train_origin != images.dataset.origin:
        return "the judge was trained on another data set"
    if judge.train_cases is None:
        return "unknown how many of these images the judge was trained on"
    known = set(judge.train_cases)
    return (
        f"the judge was trained on {sum(one.case in known for one in images.slices)} of these {len(images)}"
    )
