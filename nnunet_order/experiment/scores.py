"""The scores of an experiment's trainings, per case and label, from what `evaluate` left of each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_order.metrics import FOREGROUND_MEAN, METRICS

VALIDATION = "validation"  # name of the pooled validation cases of all folds


@dataclass(frozen=True)
class CaseScores:
    """Scores of one trainer on one test set, paired by training and case."""

    trainer: str
    test_set: str
    label: str
    """Name of a label or region, or `FOREGROUND_MEAN`, the mean over a case's labels."""
    cases: list[str]
    trainings: list[tuple]
    """One per row: (seed,) where the cases of all folds are pooled, else (fold, seed)."""
    values: dict[str, dict[str, np.ndarray]]
    """Arm -> metric -> (trainings, cases); NaN: nothing to find, or not there."""


def read_scores(folder: Path, description: Mapping, missing: list[str]) -> list[CaseScores]:
    """Scores by trainer, test set and label, in the order of experiment.json."""
    pooled = description["on"] == VALIDATION
    found: dict[tuple[str, str], dict[str, dict[tuple[str, tuple, str], np.ndarray]]] = {}
    for entry in description["segmentations"]:
        path = folder / entry["scores"] / "per_case.csv"
        if not path.is_file():
            missing.append(f"scores of {entry['name']}")
            continue
        training = (entry["seed"],) if pooled else (entry["fold"], entry["seed"])
        for (test_set, case), labels in read_case_scores(path).items():
            group = found.setdefault((entry["trainer"], VALIDATION if pooled else test_set), {})
            for label, values in labels.items():
                group.setdefault(label, {})[entry["arm"], training, case] = values
    order = {trainer: position for position, trainer in enumerate(description["trainers"])}
    ranked = sorted(found.items(), key=lambda item: order.get(item[0][0], len(order)))
    return [
        _as_arrays(trainer, test_set, label, values)
        for (trainer, test_set), labels in ranked
        for label, values in labels.items()
    ]


def read_case_scores(path: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(Test set, case) -> label -> values of `METRICS`, from per_case.csv of one prediction.

    First the mean over a case's labels; the label itself where there is only one.
    """
    scores: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in read_csv(path):
        values = np.array([float(row[metric] or "nan") for metric in METRICS])
        scores.setdefault((row["test_set"], row["case"]), {})[row["label"]] = values
    means = {key: nan_mean(np.array(list(labels.values())), axis=0) for key, labels in scores.items()}
    return {
        key: {FOREGROUND_MEAN: means[key], **(labels if len(labels) > 1 else {})}
        for key, labels in scores.items()
    }


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the names in its first line."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _as_arrays(trainer: str, test_set: str, label: str, group: Mapping) -> CaseScores:
    """(arm, training, case) -> values of `METRICS`, as arrays in which trainings and cases are paired."""
    arms, trainings, cases = (list(dict.fromkeys(column)) for column in zip(*group, strict=True))
    trainings = sorted(trainings, key=lambda training: tuple(map(str, training)))
    cases = sorted(cases)
    row, column = ({key: index for index, key in enumerate(keys)} for keys in (trainings, cases))
    arrays = {arm: np.full((len(METRICS), len(trainings), len(cases)), np.nan) for arm in arms}
    for (arm, training, case), values in group.items():
        arrays[arm][:, row[training], column[case]] = values
    by_metric = {arm: dict(zip(METRICS, array, strict=True)) for arm, array in arrays.items()}
    return CaseScores(trainer, test_set, label, cases, trainings, by_metric)
