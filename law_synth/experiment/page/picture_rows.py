"""The report's rows of pictures: generated grids, predictions, delta maps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from law_synth.experiment.page.charts import label_suffixes, runs_by_arm
from law_synth.experiment.page.data_uris import SMALLEST, map_picture, mask_picture, photo
from law_synth.experiment.page.display import Display, Plane
from law_synth.experiment.page.sentences import number
from law_synth.experiment.results import Results, SynthesisResult
from law_synth.records.synthetic import SynthesisRow, source_slice
from law_synth.view.slices import Slice
from nnunet_order.comparing.scores import CaseScores, nan_mean
from nnunet_order.metrics import FOREGROUND_MEAN
from nnunet_order.stages.experiment_record import SegmentationEntry

SHOWN_MASKS = 4
SHOWN_STEPS = 6
TRUTH = "#ffffff"


@dataclass(frozen=True)
class Tile:
    """A picture with its caption; `source` is a data URI, or None where there is no picture."""

    source: str | None
    caption: str
    text: str
    """A description for readers who do not see it."""
    arm: str | None = None
    note: str = ""
    """A line below the caption."""


def first_syntheses(results: Results) -> list[SynthesisResult]:
    """The first finished synthesis of each arm, in the order of the arms."""
    ready = [one for one in results.syntheses if one.manifest]
    first = {one.arm: one for one in reversed(ready)}
    return [first[arm] for arm in results.arms if arm in first]


@dataclass(frozen=True)
class Painter:
    """Draws an experiment's cases alike: `display` says what of them, `side` how large."""

    results: Results
    display: Display
    arms: Mapping[str, str]
    """Arm -> colour."""
    side: int

    def image(self, plane: Plane) -> str:
        return photo(plane.image, self.side, aspect=plane.aspect)

    def truth(self, plane: Plane, arm: str | None = None) -> str:
        """With the outlines of its labels; that of an only one in the arm's colour."""
        outlines = self.display.painted(plane.truth, self.arms.get(arm, TRUTH))
        return photo(plane.image, self.side, outlines, plane.aspect)

    def prediction(self, plane: Plane, found: Mapping[str, np.ndarray], arm: str) -> str:
        """With the outlines of what an arm found over those of the truth."""
        truth = [(mask, TRUTH) for mask in plane.truth.values()]
        outlines = [*truth, *self.display.painted(found, self.arms[arm])]
        return photo(plane.image, self.side, outlines, plane.aspect)

    def mask(self, masks: Mapping[str, np.ndarray], aspect: float = 1.0) -> str:
        return mask_picture(self.display.painted(masks, TRUTH), SMALLEST, aspect)


def generated_grids(painter: Painter) -> list[dict]:
    """Masks as in the paper's Fig. 6: one entry per mask with a row of mask | generated | overlay per arm."""
    syntheses = first_syntheses(painter.results)
    kept = {one.arm: {_mask_key(row): row for row in one.manifest if row.kept} for one in syntheses}
    datasets = {one.arm: read_dataset(one.dataset) for one in syntheses}
    grids = []
    for key in shared_masks(painter.results, kept):
        rows = _real_row(painter, key, kept)
        for arm, dataset in datasets.items():
            row = kept[arm].get(key)
            tiles = [] if row is None else _three(painter, dataset, dataset.case(row.case), 0, arm)
            rows.append({"arm": arm, "tiles": tiles})
        source = next(found[key] for found in kept.values() if key in found)
        grids.append({"mask": _mask_name(source), "rows": rows})
    return grids


def shared_masks(results: Results, kept: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    """Masks that most arms have kept, spread over the lesion sizes, small ones first.

    `kept`: arm -> mask -> row of its manifest. Of several labels, the size is that of the rarest one, and
    masks with it are preferred.
    """
    owners = Counter(key for rows in kept.values() for key in rows)
    if not owners:
        return []
    most = max(owners.values())
    sizes = mask_sizes(results)
    shared = [key for key, count in owners.items() if count == most]
    shared = [key for key in shared if sizes.get(key)] or shared
    shared.sort(key=lambda key: (sizes.get(key, 0.0), key))
    # Not the very ends: the smallest and the largest lesion are the oddest ones.
    quantiles = np.linspace(0.05, 0.9, SHOWN_MASKS) * (len(shared) - 1)
    return [shared[index] for index in dict.fromkeys(quantiles.round().astype(int).tolist())]


def mask_sizes(results: Results) -> dict[tuple[str, str], float]:
    """Mask -> share of the image that is its lesion; of several labels, that of the rarest one."""
    judged = [pair for one in first_syntheses(results) for pair in _judged(one)]
    names = [f"lesion_ratio{suffix}" for suffix in label_suffixes(results).values()]
    sizes = {name: {_mask_key(row): float(case.get(name) or 0) for row, case in judged} for name in names}
    return min(sizes.values(), key=lambda found: sum(found.values()))


def example_cases(group: CaseScores, arm: str) -> list[tuple[str, str]]:
    """(Rank, case): best, median and worst case by the Dice of an arm, averaged over its trainings."""
    dice = nan_mean(group.of_cases(arm, "Dice"), axis=0)
    ranked = sorted(np.flatnonzero(np.isfinite(dice)).tolist(), key=lambda index: (-dice[index], index))
    if not ranked:
        return []
    chosen = {ranked[-1]: "worst", ranked[len(ranked) // 2]: "median", ranked[0]: "best"}
    return [(rank, group.cases[index]) for index, rank in reversed(chosen.items())]


def predictions(painter: Painter, labels: Mapping[str, CaseScores]) -> list[dict]:
    """Cases as in the paper's Fig. 7: image | truth | prediction of each arm's first training.

    `labels`: scores of one trainer and test set by label, the mean among them.
    """
    results, group = painter.results, labels[FOREGROUND_MEAN]
    ranked_by = results.reference if results.reference in group.values else next(iter(group.values))
    rows = []
    for rank, case_id in example_cases(group, ranked_by):
        if results.real is None or case_id not in results.real_cases:
            continue
        case = results.real_cases[case_id]
        plane = painter.display.plane(results.real, case)
        tiles = [
            Tile(painter.image(plane), "image", f"test image {case_id}"),
            Tile(painter.truth(plane), "truth", f"true outline of {case_id}"),
        ]
        for arm in (arm for arm in results.arms if arm in group.values):
            tiles.append(_prediction(painter, labels, arm, case, plane))
        rows.append({"rank": rank, "case": case_id, "tiles": tiles})
    return rows


def delta_maps(painter: Painter) -> list[dict]:
    """Delta maps over the training as in the paper's Fig. 8: per arm the steps, and a row per case."""
    arms = []
    for arm, runs in runs_by_arm(painter.results).items():
        one = next((one for one in runs if one.deltas and one.config), None)
        if one is None:
            continue
        every = sorted(one.deltas)
        picked = np.linspace(0, len(every) - 1, min(SHOWN_STEPS, len(every))).round().astype(int)
        steps = [every[index] for index in picked]
        maps = np.stack([np.load(one.deltas[step]) for step in steps])  # (steps, cases, h, w)
        slices = one.config.monitored_slices[: maps.shape[1]]
        rows = [_delta_row(painter, slice_, maps[:, index], steps) for index, slice_ in enumerate(slices)]
        arms.append({"arm": arm, "steps": steps, "rows": rows, "low": maps.min(), "high": maps.max()})
    return arms


def _delta_row(painter: Painter, slice_: Slice, maps: np.ndarray, steps: Sequence[int]) -> list[Tile]:
    results, mask = painter.results, Tile(None, "mask", "")
    if slice_.case in results.real_cases:
        label = results.real_cases[slice_.case].label
        masks = painter.display.labels(results.real, label, slice_.index or 0)
        mask = Tile(painter.mask(masks), "mask", f"mask of {slice_.id}")
    return [
        mask,
        *(
            Tile(map_picture(values), f"step {step}", f"delta map of {slice_.id} at step {step}")
            for step, values in zip(steps, maps, strict=True)
        ),
    ]


def _real_row(painter: Painter, key: tuple[str, str], kept: Mapping[str, Mapping]) -> list[dict]:
    """The real image that owns a mask, where it is known and the mask was not changed."""
    row = next(rows[key] for rows in kept.values() if key in rows)
    source = source_slice(row)
    case = source and painter.results.real_cases.get(source.case)
    if case is None or row.mask_augmentation != "none":
        return []
    tiles = _three(painter, painter.results.real, case, source.index or 0, None)
    return [{"arm": "own real image", "tiles": tiles}]


def _three(painter: Painter, dataset: RawDataset, case: Case, index: int, arm: str | None) -> list[Tile]:
    plane = painter.display.plane(dataset, case, index)
    name = f"{arm or 'real'}, {case.id}"
    return [
        Tile(painter.mask(plane.truth, plane.aspect), "mask", f"mask of {name}", arm),
        Tile(painter.image(plane), "image", f"image of {name}", arm),
        Tile(painter.truth(plane, arm), "overlay", f"outline of the mask on {name}", arm),
    ]


def _prediction(
    painter: Painter, labels: Mapping[str, CaseScores], arm: str, case: Case, plane: Plane
) -> Tile:
    """An arm's outline over the truth's; with an empty frame where the prediction is not there."""
    results, group = painter.results, labels[FOREGROUND_MEAN]
    for entry in results.description.segmentations:
        path = results.folder / entry.predictions / f"{case.id}{results.real.file_ending}"
        if entry.arm != arm or entry.trainer != group.trainer or not path.is_file():
            continue
        found = painter.display.labels(results.real, path, plane.index)
        dice = _dice_of(labels, arm, entry, case.id)
        value = number(dice.pop(FOREGROUND_MEAN)).replace("\N{EN DASH}", "")
        text = f"{arm}: predicted outline of {case.id}, Dice {value or 'unknown'}"
        each = ", ".join(f"{name} {number(one)}" for name, one in dice.items())
        return Tile(painter.prediction(plane, found, arm), f"{arm} {value}".strip(), text, arm, each)
    return Tile(None, arm, f"{arm}: no prediction of {case.id}", arm)


def _dice_of(
    labels: Mapping[str, CaseScores], arm: str, entry: SegmentationEntry, case: str
) -> dict[str, float]:
    """Label -> Dice in percent of one training on a case; NaN where it is not known."""
    keys = [(entry.seed,), (entry.fold, entry.seed)]
    dice = {}
    for label, group in labels.items():
        training = next((index for index, key in enumerate(group.trainings) if key in keys), None)
        known = training is not None and arm in group.values
        value = group.of_cases(arm, "Dice")[training, group.cases.index(case)] if known else math.nan
        dice[label] = 100 * float(value)
    return dice


def _mask_key(row: SynthesisRow) -> tuple[str, str]:
    return row.source_mask, row.mask_sha256


def _mask_name(row: SynthesisRow) -> str:
    """The mask's source in words."""
    slice_ = row.source_slice
    return row.source_mask if slice_ is None else f"{row.source_mask}, slice {slice_ + 1}"


def _judged(one: SynthesisResult) -> list[tuple[SynthesisRow, dict]]:
    """(Row of the manifest, row of the evaluation) of each case that has both."""
    rows = {row.case: row for row in one.manifest}
    return [(rows[case["case"]], case) for case in one.cases if case["case"] in rows]
