"""Scores of predictions against labels, per case and as means with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track

from dataset_conversion.raw.cases import files_by_id
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.raw.geometry import check_places, label_spacing, slice_axis
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.parallel import in_processes
from nnunet_order.bootstrap import mean_over_cases, resampled_means, with_interval
from nnunet_order.metrics import FOREGROUND_MEAN, MEANS, METRICS, label_metrics
from nnunet_order.predictions import read_prediction, tell_of_other_sizes

CASES_PER_WORKER = 64  # a worker takes seconds to start


@dataclass(frozen=True)
class Evaluation:
    """Everything one run of `nnunet-order evaluate` read and found."""

    dataset: RawDataset
    folders: dict[str, Path]
    """Prediction name -> folder, in the order given."""
    truths: dict[str, Path]
    """Case id -> label file."""
    test_sets: dict[str, list[str]]
    """Test set -> case ids."""
    scores: dict[str, np.ndarray]
    """Prediction name -> (cases, labels, metrics), see `score_folders`."""
    rows: list[dict]
    """A row per test set, label and prediction, see `summarise`."""
    nsd_tolerance: float
    seed: int
    """The seed of the bootstrap."""


def score_folders(
    dataset: RawDataset,
    truths: Mapping[str, Path],
    folders: Mapping[str, Path],
    tolerance: float,
    processes: int = 1,
) -> dict[str, np.ndarray]:
    """Prediction name -> (cases, labels, metrics), in the order of `truths`, `dataset.regions` and `METRICS`.

    UserError: a prediction is missing or unreadable, has another size or another place in space than its
    label, or a value outside dataset.json.
    """
    # Not the truth's file name: dataset.json may list labels of any name.
    found = {folder: files_by_id(folder, dataset.file_ending) for folder in folders.values()}
    for folder in folders.values():
        missing = [case for case in truths if case not in found[folder]]
        if missing:
            raise UserError(
                f"{folder}: found no {missing[0]}{dataset.file_ending} ({len(missing)} of {len(truths)} "
                "missing), expected one prediction per label; predict the missing cases"
            )
    jobs = [(truth, found[folder][case]) for folder in folders.values() for case, truth in truths.items()]
    check_places(dataset, truths, jobs)
    tell_of_other_sizes(dataset, jobs)
    score = partial(score_case, dataset, tolerance)
    workers = min(processes, 1 + len(jobs) // CASES_PER_WORKER)
    if workers <= 1:
        results = list(track(map(score, jobs), "Scoring", total=len(jobs)))
    else:
        with in_processes(score, jobs, workers, chunk=8) as found:
            results = list(track(found, "Scoring", total=len(jobs)))
    per_folder = np.array(results).reshape(len(folders), len(truths), len(dataset.regions), len(METRICS))
    return dict(zip(folders, per_folder, strict=True))


def score_case(dataset: RawDataset, tolerance: float, files: tuple[Path, Path]) -> np.ndarray:
    """(labels, metrics) of one pair (label file, prediction file)."""
    truth = dataset.read_label(files[0])
    prediction = read_prediction(dataset, files[1], truth.shape)
    spacing = label_spacing(dataset, files[0])
    if 1 in truth.shape:  # one slice, which has no neighbours to be bounded by
        axis = slice_axis(spacing, truth.shape)
        truth, prediction, spacing = truth.take(0, axis), prediction.take(0, axis), np.delete(spacing, axis)
    scores = label_metrics(truth, prediction, dataset.regions, dataset.ignore_label, spacing, tolerance)
    return np.array([[values[metric] for metric in METRICS] for values in scores.values()])


def summarise(
    scores: Mapping[str, np.ndarray],
    groups: Mapping[str, str],
    test_sets: Mapping[str, list[str]],
    labels: list[str],
    seed: int,
) -> list[dict]:
    """One row per test set, label (the foreground mean first) and prediction: means with 95 % intervals.

    From the second prediction on, delta_mDice and delta_mIoU are the difference to the first on the same
    cases, with the interval of the paired bootstrap.

    Args:
        groups: case -> its patient or video, in the order of `scores`.
    """
    position = {case: index for index, case in enumerate(groups)}
    columns = {FOREGROUND_MEAN: list(range(len(labels)))} | {name: [i] for i, name in enumerate(labels)}
    rows = []
    for test_set, members in test_sets.items():
        index = [position[case] for case in members]
        for label, chosen in columns.items():
            selected = {name: values[index][:, chosen] for name, values in scores.items()}
            of_cases = [groups[case] for case in members]
            found = summary_rows(selected, of_cases, seed)
            rows += [{"test_set": test_set, "label": label, **row} for row in found]
    return rows


def summary_rows(selected: Mapping[str, np.ndarray], groups: Sequence[str], seed: int) -> list[dict]:
    """One row per prediction: N, means, differences.

    Args:
        selected: name -> (cases, labels, metrics).
        groups: (cases,), the patient or video of each.
    """
    rows, reference = [], {}
    for name, values in selected.items():
        scored = int(np.isfinite(values[..., 0]).any(axis=1).sum())
        row: dict = {"prediction": name, "N": len(values), "N_scored": scored, "groups": len(set(groups))}
        for column, metric in MEANS.items():
            of_metric = values[..., METRICS.index(metric)]
            mean, samples = mean_over_cases(of_metric), resampled_means(of_metric, seed, groups=groups)
            row |= with_interval(column, mean, samples)
            if column not in ("mDice", "mIoU"):
                continue
            if column in reference:
                first_mean, first_samples = reference[column]
                row |= with_interval(f"delta_{column}", mean - first_mean, samples - first_samples)
            else:
                reference[column] = mean, samples
        rows.append(row)
    return rows
