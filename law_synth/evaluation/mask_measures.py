"""Do images follow their masks? Agreement with a judge and contrast, over all regions and of each."""

from __future__ import annotations

import numpy as np

from law_synth.evaluation.measurement import BOOTSTRAP, Measurement, mean_measures
from law_synth.evaluation.per_image import PerImageResults, several

SMALL_LESION = 0.1  # share of the image
EMPTY_MASKS = "mask and prediction both empty: left out, one of them empty: 0"


def agreement(results: PerImageResults, seed: int) -> list[Measurement]:
    """Dice and IoU of the judge with own and shuffled masks, and the real ceiling: mean, then each region.

    Small lesions apart where there is one kind of them.
    """
    measures = []
    for region in ("", *several(tuple(results.sets.real.regions))):
        for metric, name in (("dice", "mDice"), ("iou", "mIoU")):
            for set_ in results.layouts:
                measures += _agreement(results, set_, metric, name, region, seed)
    return measures


def _agreement(
    results: PerImageResults, set_: str, metric: str, name: str, region: str, seed: int
) -> list[Measurement]:
    """One metric of one region (empty: the mean over regions) of one image set."""
    layout, suffix = results.layouts[set_], f"_{region}" if region else ""
    own, shuffled = layout[metric + suffix], layout[f"{metric}_shuffled{suffix}"]
    parts = {"own mask": own, "shuffled": shuffled, "own - shuffled": own - shuffled}
    small_note, regions = "", several(tuple(results.sets.real.regions))
    if not regions:
        small = (layout["lesion_ratio"] > 0) & (layout["lesion_ratio"] < SMALL_LESION)
        parts |= {
            "small, own": np.where(small, own, np.nan),
            "small, own - shuffled": np.where(small, own - shuffled, np.nan),
        }
        small_note = f"small: lesions under {SMALL_LESION:.0%} of the image; "
    what = f"mean over {', '.join(regions)} of" if regions and not region else f"{region or 'foreground'}"
    ceiling = "" if set_ == "synthetic" else f"ceiling: {judged_before(results, set_)}; "
    protocol = (
        f"{ceiling}per-image {what} {name[1:]} of mask and prediction of "
        f"{results.segmenter.name}; {EMPTY_MASKS}; {small_note}{BOOTSTRAP}"
    )
    images = "synthetic" if set_ == "synthetic" else f"ceiling: {set_}"
    groups = results.sets.groups(set_)
    return mean_measures("Masks", f"{name} {region}".strip(), images, parts, groups, protocol, seed)


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


def contrasts(results: PerImageResults, seed: int) -> list[Measurement]:
    """Colour contrast of mask and ring, own and shuffled masks, synthetic and real; then of each region."""
    measures = []
    for region in ("", *several(tuple(results.sets.real.regions))):
        suffix = f"_{region}" if region else ""
        for set_, layout in results.layouts.items():
            own, shuffled = layout[f"contrast{suffix}"], layout[f"contrast_shuffled{suffix}"]
            protocol = (
                "Euclidean RGB distance (0 to 1.73) of the mean colours inside the mask and in a ring around "
                "it, a tenth of the equivalent diameter wide, at least 2 px; "
                f"{int(np.isnan(own).sum())} empty or full masks left out; {BOOTSTRAP}"
            )
            parts = {"own mask": own, "shuffled": shuffled, "own - shuffled": own - shuffled}
            images = "synthetic" if set_ == "synthetic" else f"scale: {set_}"
            groups, name = results.sets.groups(set_), f"contrast {region}".strip()
            measures += mean_measures("Masks", name, images, parts, groups, protocol, seed)
    return measures
