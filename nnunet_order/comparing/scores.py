"""The scores of an experiment's trainings, per case and label, from what `evaluate` left of each."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_order.metrics import FOREGROUND_MEAN, METRICS
from nnunet_order.stages.experiment_record import ExperimentRecord

VALIDATION = "validation"  # name of the pooled validation cases of all folds


@dataclass(frozen=True)
class CaseScores:
    """Scores of one trainer on one test set, paired by training and case."""

    trainer: str
    test_set: str
    label: str
    """Name of a label or region, or `FOREGROUND_MEAN` for all of them."""
    cases: list[str]
    trainings: list[tuple]
    """One per row: (seed,) where the cases of all folds are pooled, else (fold, seed)."""
    values: dict[str, dict[str, np.ndarray]]
    """Arm -> metric -> (trainings, cases, labels); NaN: nothing to find and nothing found, or not scored."""
    scored: dict[str, np.ndarray]
    """Arm -> (trainings, cases), whether that training's prediction of the case has been scored."""

    def of_cases(self, arm: str, metric: str) -> np.ndarray:
        """(trainings, cases), the mean over a case's labels."""
        return nan_mean(self.values[arm][metric], axis=2)

    def pair(self, arm: str, reference: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of two arms (trainings, cases, labels) where both are scored, else NaN."""
        both = (self.scored[arm] & self.scored[reference])[..., None]
        first, second = (np.where(both, self.values[one][metric], np.nan) for one in (arm, reference))
        return first, second


def read_scores(
    folder: Path, record: ExperimentRecord, missing: list[str], outdated: Collection[str] = ()
) -> list[CaseScores]:
    """Scores by trainer, test set and label, in the order of experiment.json.

    Scores that are not there, or that come from one of the `outdated` stages, are added to `missing`.
    """
    pooled = record.on == VALIDATION
    found: dict[tuple[str, str], dict[tuple[str, tuple, str], dict[str, np.ndarray]]] = {}
    for entry in record.segmentations:
        path = folder / entry.scores / "per_case.csv"
        if not path.is_file():
            missing.append(f"scores of {entry.name}")
            continue
        if f"score_{entry.name}" in outdated:
            missing.append(f"scores of {entry.name} (there are some of an earlier configuration)")
            continue
        training = (entry.seed,) if pooled else (entry.fold, entry.seed)
        for (test_set, case), labels in read_case_scores(path).items():
            group = found.setdefault((entry.trainer, VALIDATION if pooled else test_set), {})
            group[entry.arm, training, case] = labels
    order = {trainer: position for position, trainer in enumerate(record.trainers)}
    ranked = sorted(found.items(), key=lambda item: order.get(item[0][0], len(order)))
    return [one for (trainer, test_set), group in ranked for one in _of_labels(trainer, test_set, group)]


def read_case_scores(path: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(Test set, case) -> label -> values of `METRICS`, from per_case.csv of one prediction."""
    scores: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in read_csv(path):
        values = np.array([float(row[metric] or "nan") for metric in METRICS])
        scores.setdefault((row["test_set"], row["case"]), {})[row["label"]] = values
    return scores


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


def _of_labels(trainer: str, test_set: str, group: Mapping) -> list[CaseScores]:
    """Of all labels together and, of several, of each; from (arm, training, case) -> label -> values."""
    arms, trainings, cases = (list(dict.fromkeys(column)) for column in zip(*group, strict=True))
    trainings = sorted(trainings, key=lambda training: tuple(map(str, training)))
    cases = sorted(cases)
    labels = list(dict.fromkeys(label for found in group.values() for label in found))
    row, column = ({key: index for index, key in enumerate(keys)} for keys in (trainings, cases))
    arrays = {arm: np.full((len(METRICS), len(row), len(column), len(labels)), np.nan) for arm in arms}
    scored = {arm: np.zeros((len(row), len(column)), bool) for arm in arms}
    for (arm, training, case), found in group.items():
        scored[arm][row[training], column[case]] = True
        for place, label in enumerate(labels):
            arrays[arm][:, row[training], column[case], place] = found[label]
    chosen = {FOREGROUND_MEAN: slice(None)}
    if len(labels) > 1:
        chosen |= {label: slice(place, place + 1) for place, label in enumerate(labels)}
    return [
        CaseScores(
            trainer,
            test_set,
            label,
            cases,
            trainings,
            {arm: dict(zip(METRICS, array[..., places], strict=True)) for arm, array in arrays.items()},
            scored,
        )
        for label, places in chosen.items()
    ]
