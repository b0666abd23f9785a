"""Pictures of the report as data URIs: thumbnails with outlines, generated grids, predictions, delta maps."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset_conversion.raw import COLOUR_ENDINGS, Case, RawDataset, read_dataset
from law_synth.experiment.charts import runs_by_arm
from law_synth.experiment.results import CaseScores, Results, Synthesis, nan_mean
from nnunet_order.figures import displayable

SHOWN_MASKS = 4
SHOWN_STEPS = 6
TRUTH = "#ffffff"
LARGEST, SMALLEST = 256, 96  # sides of a thumbnail in pixels
PIXELS = 9_000_000  # of all photos; about a third of a byte each makes 4 MB of base64


@dataclass(frozen=True)
class Tile:
    """A picture with its caption; `source` is a data URI, or None where there is no picture."""

    source: str | None
    caption: str
    text: str
    """For readers who do not see it."""
    arm: str | None = None


def thumbnail_side(photos: int) -> int:
    """Side at which so many photos keep the page small."""
    return int(np.clip(math.isqrt(PIXELS // max(photos, 1)), SMALLEST, LARGEST))


def photo(image: np.ndarray, side: int, outlines: Sequence[tuple[np.ndarray, str]] = ()) -> str:
    """Image (H, W) or (H, W, 3) in [0, 1] with outlines of boolean masks (H, W) -> JPEG of at most `side`."""
    picture = Image.fromarray((255 * np.clip(image, 0, 1)).round().astype(np.uint8)).convert("RGB")
    size = _fit(picture.size, side)
    # Twice the size while drawing: shrinking it smooths the outlines.
    large = np.array(picture.resize((2 * size[0], 2 * size[1]), Image.Resampling.BICUBIC))
    for mask, colour in outlines:
        large[_edge(mask, large.shape[:2], width=3)] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    stream = io.BytesIO()
    final = Image.fromarray(large).resize(size, Image.Resampling.BOX)
    final.save(stream, "JPEG", quality=80, subsampling=0, optimize=True)  # 4:4:4 keeps thin lines' colours
    return _uri("jpeg", stream)


def mask_picture(mask: np.ndarray, side: int) -> str:
    """Boolean mask (H, W) as a white shape on black, PNG."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture = picture.resize(_fit(picture.size, side), Image.Resampling.NEAREST).convert("1", dither=0)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return _uri("png", stream)


def map_picture(values: np.ndarray) -> str:
    """Map (h, w) in [0, 1] in viridis, PNG of one pixel per value; the page enlarges it."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.clip(values, 0, 1), bytes=True)[..., :3]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(stream, "PNG", optimize=True)
    return _uri("png", stream)


def first_syntheses(results: Results) -> list[Synthesis]:
    """The first finished synthesis of each arm, in the order of the arms."""
    ready = [one for one in results.syntheses if one.manifest]
    first = {one.arm: one for one in reversed(ready)}
    return [first[arm] for arm in results.arms if arm in first]


def generated_grids(results: Results, colours: Mapping[str, str], side: int) -> list[dict]:
    """Masks as in the paper's Fig. 6: one entry per mask with a row of mask | generated | overlay per arm."""
    syntheses = first_syntheses(results)
    kept = {one.arm: {_mask_key(row): row for row in one.manifest if row["kept"]} for one in syntheses}
    datasets = {one.arm: read_dataset(one.dataset) for one in syntheses}
    grids = []
    for key in shared_masks(syntheses, kept):
        rows = _real_row(results, key, kept, side)
        for arm, dataset in datasets.items():
            row = kept[arm].get(key)
            tiles = [] if row is None else _three(dataset, dataset.case(row["case"]), colours[arm], arm, side)
            rows.append({"arm": arm, "tiles": tiles})
        grids.append({"mask": key[0], "rows": rows})
    return grids


def shared_masks(syntheses: Sequence[Synthesis], kept: Mapping[str, Mapping]) -> list[tuple[str, str]]:
    """Masks that most arms have kept, spread over the lesion sizes, small ones first."""
    owners = Counter(key for rows in kept.values() for key in rows)
    if not owners:
        return []
    most = max(owners.values())
    sizes = {
        _mask_key(row): float(case["lesion_ratio"] or 0) for one in syntheses for row, case in _judged(one)
    }
    shared = sorted(
        (key for key, count in owners.items() if count == most), key=lambda key: (sizes.get(key, 0.0), key)
    )
    # Not the very ends: the smallest and the largest lesion are the oddest ones.
    quantiles = np.linspace(0.05, 0.9, SHOWN_MASKS) * (len(shared) - 1)
    return [shared[index] for index in dict.fromkeys(quantiles.round().astype(int).tolist())]


def example_cases(group: CaseScores, arm: str) -> list[tuple[str, str]]:
    """(Rank, case): best, median and worst case by the Dice of an arm, averaged over its trainings."""
    dice = nan_mean(group.values[arm]["Dice"], axis=0)
    ranked = sorted(np.flatnonzero(np.isfinite(dice)).tolist(), key=lambda index: (-dice[index], index))
    if not ranked:
        return []
    chosen = {ranked[-1]: "worst", ranked[len(ranked) // 2]: "median", ranked[0]: "best"}
    return [(rank, group.cases[index]) for index, rank in reversed(chosen.items())]


def predictions(results: Results, group: CaseScores, colours: Mapping[str, str], side: int) -> list[dict]:
    """Cases as in the paper's Fig. 7: image | truth | prediction of each arm's first training."""
    ranked_by = results.reference if results.reference in group.values else next(iter(group.values))
    rows = []
    for rank, case_id in example_cases(group, ranked_by):
        if results.real is None or case_id not in results.real_cases:
            continue
        case = results.real_cases[case_id]
        image, truth, z = _displayed(results.real, case)
        tiles = [
            Tile(photo(image, side), "image", f"test image {case_id}"),
            Tile(photo(image, side, [(truth, TRUTH)]), "truth", f"true outline of {case_id}"),
        ]
        for arm in (arm for arm in results.arms if arm in group.values):
            tiles.append(_prediction(results, group, arm, case, (image, truth, z), colours[arm], side))
        rows.append({"rank": rank, "case": case_id, "tiles": tiles})
    return rows


def delta_maps(results: Results) -> list[dict]:
    """Delta maps over the training as in the paper's Fig. 8: per arm the steps, and a row per case."""
    arms = []
    for arm, runs in runs_by_arm(results).items():
        one = next((one for one in runs if one.deltas), None)
        if one is None:
            continue
        every = sorted(one.deltas)
        picked = np.linspace(0, len(every) - 1, min(SHOWN_STEPS, len(every))).round().astype(int)
        steps = [every[index] for index in picked]
        maps = np.stack([np.load(one.deltas[step]) for step in steps])  # (steps, cases, h, w)
        # As loop.Loop._load: without cases set aside, the first ones trained on.
        cases = (one.config.get("monitor_cases") or one.config.get("train_cases", []))[: maps.shape[1]]
        rows = [_delta_row(results, case, maps[:, index], steps) for index, case in enumerate(cases)]
        arms.append({"arm": arm, "steps": steps, "rows": rows, "low": maps.min(), "high": maps.max()})
    return arms


def _delta_row(results: Results, case_id: str, maps: np.ndarray, steps: Sequence[int]) -> list[Tile]:
    mask = Tile(None, "mask", "")
    if case_id in results.real_cases:
        label = results.real.read_label(results.real_cases[case_id].label)
        mask = Tile(mask_picture(label[0] > 0, SMALLEST), "mask", f"mask of {case_id}")
    return [
        mask,
        *(
            Tile(map_picture(values), f"step {step}", f"delta map of {case_id} at step {step}")
            for step, values in zip(steps, maps, strict=True)
        ),
    ]


def _real_row(results: Results, key: tuple[str, str], kept: Mapping[str, Mapping], side: int) -> list[dict]:
    """The real image that owns a mask, where it is known and the mask was not changed."""
    row = next(rows[key] for rows in kept.values() if key in rows)
    case = results.real_cases.get(row["source_case"] or "")
    if case is None or row["mask_augmentation"] != "none":
        return []
    return [{"arm": "own real image", "tiles": _three(results.real, case, TRUTH, None, side)}]


def _three(dataset: RawDataset, case: Case, colour: str, arm: str | None, side: int) -> list[Tile]:
    image, mask, _ = _displayed(dataset, case)
    name = f"{arm or 'real'}, {case.id}"
    return [
        Tile(mask_picture(mask, SMALLEST), "mask", f"mask of {name}", arm),
        Tile(photo(image, side), "image", f"image of {name}", arm),
        Tile(photo(image, side, [(mask, colour)]), "overlay", f"outline of the mask on {name}", arm),
    ]


def _prediction(
    results: Results,
    group: CaseScores,
    arm: str,
    case: Case,
    shown: tuple[np.ndarray, np.ndarray, int],
    colour: str,
    side: int,
) -> Tile:
    """An arm's outline over the truth's; with an empty frame where the prediction is not there."""
    image, truth, z = shown
    for entry in results.description["segmentations"]:
        path = results.folder / entry["predictions"] / case.label.name
        if entry["arm"] != arm or entry["trainer"] != group.trainer or not path.is_file():
            continue
        found = results.real.read_label(path)[z] > 0
        keys = [(entry["seed"],), (entry["fold"], entry["seed"])]
        training = next((index for index, key in enumerate(group.trainings) if key in keys), None)
        dice = math.nan
        if training is not None:
            dice = group.values[arm]["Dice"][training, group.cases.index(case.id)]
        value = f"{100 * dice:.1f}" if math.isfinite(dice) else ""
        text = f"{arm}: predicted outline of {case.id}, Dice {value or 'unknown'}"
        return Tile(
            photo(image, side, [(truth, TRUTH), (found, colour)]), f"{arm} {value}".strip(), text, arm
        )
    return Tile(None, arm, f"{arm}: no prediction of {case.id}", arm)


def _displayed(dataset: RawDataset, case: Case) -> tuple[np.ndarray, np.ndarray, int]:
    """Image in [0, 1], boolean foreground (H, W), and which slice: of a volume, that with the most lesion."""
    label = dataset.read_label(case.label)
    z = int((label > 0).sum(axis=(1, 2)).argmax())
    colour = dataset.file_ending in COLOUR_ENDINGS and len(dataset.channel_names) >= 3
    return displayable(dataset.read_image(case)[:, z], colour), label[z] > 0, z


def _mask_key(row: Mapping) -> tuple[str, str]:
    return row["source_mask"], row["mask_sha256"]


def _judged(one: Synthesis) -> list[tuple[dict, dict]]:
    """(Row of the manifest, row of the evaluation) of each case that has both."""
    rows = {row["case"]: row for row in one.manifest}
    return [(rows[case["case"]], case) for case in one.cases if case["case"] in rows]


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the longer side `side`; small pictures are enlarged, outlines need the room."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _edge(mask: np.ndarray, shape: tuple[int, int], width: int) -> np.ndarray:
    """The inner rim of a mask enlarged to `shape`."""
    from scipy.ndimage import binary_erosion

    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.BILINEAR)
    large = np.array(enlarged) > 127
    return large & ~binary_erosion(large, np.ones((3, 3)), iterations=width)


def _uri(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
