"""The report's numbers as rows of CSV files: sorted, without times and places, so that `diff` serves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset_conversion.raw.folds import fold_cases
from law_synth.experiment.results import Results, SynthesisResult
from law_synth.experiment.statistics import Difference, Estimate, Score

DIGITS = 6


@dataclass(frozen=True)
class Column:
    """A column of the table of syntheses: one measure of `law-synth evaluate`."""

    title: str
    name: str
    against: str
    images: str = "synthetic"
    scale: float = 1.0
    digits: int = 1
    real: tuple[str, str] | None = None
    """(images, against) of the same measure on real images, for scale."""


COLUMNS = (
    Column("FID", "FID", "train", real=("scale: train", "half of train")),
    Column("1000 KID", "KID", "train", scale=1000),
    Column("FD, EfficientNet", "FD-EfficientNetLite0", "train", real=("scale: train", "half of train")),
    Column("CLIP-I", "CLIP-I", "own real image", digits=3),
    Column("diversity", "diversity", "train", digits=2),
    Column("mDice, own mask", "mDice", "own mask", scale=100, real=("ceiling: train", "own mask")),
    Column("mDice, shuffled", "mDice", "shuffled", scale=100, real=("ceiling: train", "shuffled")),
    Column("mDice, small", "mDice", "small, own", scale=100, real=("ceiling: train", "small, own")),
    Column("near copies, %", "EfficientNetLite0", "near copies", scale=100),
)


def columns(results: Results) -> list[Column]:
    """`COLUMNS`, and the agreement of each label where there are several."""
    regions = list(results.real.regions) if results.real else []
    found = list(COLUMNS)
    for name in regions if len(regions) > 1 else ():
        for against in ("own mask", "shuffled"):
            real = ("ceiling: train", against)
            found.append(Column(f"{name}, {against}", f"mDice {name}", against, scale=100, real=real))
    return found


def segmentation_rows(scores: Sequence[Score]) -> list[dict]:
    """segmentation.csv: one row per mean."""
    rows = [
        {"trainer": one.trainer, "test_set": one.test_set, "label": one.label, "stratum": one.stratum}
        | {"arm": one.arm, "metric": one.metric, **_numbers("value", one.estimate)}
        for one in scores
    ]
    return _sorted(rows, "trainer", "test_set", "label", "stratum", "arm", "metric")


def difference_rows(differences: Sequence[Difference], reference: str) -> list[dict]:
    """differences.csv: one row per paired difference to the reference arm."""
    rows = [
        {"trainer": one.trainer, "test_set": one.test_set, "label": one.label, "stratum": one.stratum}
        | {"arm": one.arm, "reference": reference, "metric": one.metric}
        | _numbers("difference", one.estimate)
        | {"p_wilcoxon": _significant(one.p_value), "p_holm": _significant(one.p_holm)}
        for one in differences
    ]
    return _sorted(rows, "trainer", "test_set", "label", "stratum", "arm", "metric")


def synthesis_rows(results: Results) -> list[dict]:
    """synthesis.csv: measures of `law-synth evaluate`, and what was generated, kept and dropped."""
    rows = []
    for one in results.syntheses:
        head = {"synthesis": one.name, "arm": one.arm, "fold": one.fold, "seed": one.seed}
        for reason, number in filter_counts([one]).items():
            rows.append(head | _measure("Filter", "images", "synthetic", reason, number))
        for found in one.evaluation.get("measures", []):
            n = ", ".join(f"{name} {count}" for name, count in found["n"].items())
            keys = ("section", "name", "images", "against", "value", "low", "high")
            rows.append(head | _measure(*(found[key] for key in keys), n=n))
    return _sorted(rows, "synthesis", "section", "name", "images", "against")


def filter_counts(syntheses: Sequence[SynthesisResult]) -> dict[str, int]:
    """generated, kept, and each reason of the quality filter -> number of images; empty without images."""
    rows = [row for one in syntheses for row in one.manifest]
    if not rows:
        return {}
    reasons = Counter(row.reason for row in rows if not row.kept)
    return {"generated": len(rows), "kept": len(rows) - reasons.total(), **dict(sorted(reasons.items()))}


def synthetic_shares(results: Results) -> list[dict]:
    """Per trained arm: cases that train, real and synthetic, and the share of the batches that is synthetic.

    The mean over its syntheses. nnU-Net draws cases, whatever the number of their slices.
    """
    if results.real is None or not results.description.segmentations:
        return []
    rows = []
    for arm in results.arms:
        numbers = [
            (len(fold_cases(results.real, one.fold)[0]), filter_counts([one])["kept"])
            for one in results.syntheses
            if one.arm == arm and one.manifest
        ]
        if numbers:
            real, synthetic = np.mean(numbers, axis=0)
            share = synthetic / max(real + synthetic, 1)
            rows.append({"arm": arm, "real": real, "synthetic": synthetic, "share": share})
    return rows


def synthesis_table(results: Results) -> dict:
    """Measures of each arm, the mean over its syntheses with their range, and of real images for scale."""
    of_arm = {
        arm: [one for one in results.syntheses if one.arm == arm and one.evaluation] for arm in results.arms
    }
    of_arm = {arm: found for arm, found in of_arm.items() if found}
    every_column = columns(results)
    cells = {
        arm: {column.title: _cell(found, column, (column.images, column.against)) for column in every_column}
        for arm, found in of_arm.items()
    }
    shown = [column for column in every_column if any(row[column.title] for row in cells.values())]
    every = [one for found in of_arm.values() for one in found]
    real = {column.title: _cell(every, column, column.real) for column in shown if column.real}
    images = {arm: sum(len(one.cases) for one in found) for arm, found in of_arm.items()}
    return {"columns": shown, "rows": cells, "real": real, "images": images, "of_arm": of_arm}


def _cell(syntheses: Sequence[SynthesisResult], column: Column, key: tuple[str, str] | None) -> dict | None:
    """Mean, lowest and highest of a measure over syntheses; None where none has it."""
    values = [
        column.scale * found["value"]
        for one in syntheses
        for found in one.evaluation["measures"]
        if (found["name"], found["images"], found["against"]) == (column.name, *(key or ()))
        and found["value"] is not None
    ]
    if not values:
        return None
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values), "runs": len(values)}


def _measure(
    section: str,
    name: str,
    images: str,
    against: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    n: str = "",
) -> dict:
    return {
        "section": section,
        "measure": name,
        "images": images,
        "against": against,
        "value": _rounded(value),
        "low": _rounded(low),
        "high": _rounded(high),
        "N": n,
    }


def _numbers(name: str, found: Estimate) -> dict:
    numbers = {name: found.value, "low": found.low, "high": found.high}
    rounded = {key: _rounded(value) for key, value in numbers.items()}
    return rounded | {"trainings": found.trainings, "cases": found.cases, "groups": found.groups}


def _rounded(value: float | None) -> float | int | None:
    """Six digits after the point: the last bits depend on the machine."""
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _sorted(rows: list[dict], *keys: str) -> list[dict]:
    names = {"name": "measure"}
    return sorted(rows, key=lambda row: tuple(str(row[names.get(key, key)]) for key in keys))
