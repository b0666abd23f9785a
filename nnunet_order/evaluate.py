"""The verb `evaluate`: predictions against labels, per test set, with intervals and paired differences."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track

from dataset_conversion.raw.cases import files_by_id
from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import fold_cases
from dataset_conversion.raw.geometry import check_places, label_spacing, slice_axis
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import check_report_folder
from dataset_conversion.system.options import check_seed
from dataset_conversion.system.parallel import in_processes
from nnunet_order.evaluation_output import FILES, Evaluation, print_summary, write_report
from nnunet_order.metrics import (
    FOREGROUND_MEAN,
    MEANS,
    METRICS,
    label_metrics,
    mean_over_cases,
    resampled_means,
    with_interval,
)

CASES_PER_WORKER = 64  # a worker takes seconds to start


@dataclass(frozen=True)
class Evaluate:
    """Score folders of predictions: mDice, mIoU, HD95 and NSD per test set and label, with 95 % intervals.

    Writes per_case.csv, summary.csv, summary.json and examples.png (best, median and worst case; of a volume
    the slice with the most of its rarest label). With several folders, the means of each are also compared
    with the first's and drawn in comparison.png. A volume is one case; its prediction must lie where its
    label does. A label that neither truth nor prediction of a case has is left out of that label's mean.
    """

    dataset: str
    """Raw data set: id, DatasetXXX_NAME or folder."""
    predictions: tuple[str, ...]
    """Folders that nnUNetv2_predict wrote, each as DIR or NAME=DIR; NAME is shown in tables and pictures."""
    out: Path
    """Folder for the results."""
    labels: Path | None = None
    """Folder of the true labels; default: labelsTs of the data set, grouped by its test_sets.json."""
    fold: int | None = None
    """Score the validation cases of this fold (splits_final.json, else nnU-Net's own) against labelsTr."""
    nsd_tolerance: float = 2.0
    """Boundary error that NSD forgives: pixels where the files have no spacing (PNG), else mm."""
    seed: int = 0
    """Seed of the bootstrap."""
    processes: int = os.cpu_count() or 1
    """Worker processes."""

    def run(self) -> None:
        check_report_folder(self.out, FILES)
        check_seed(self.seed)
        if self.nsd_tolerance < 0:
            raise UserError(
                f"found --nsd-tolerance {self.nsd_tolerance:g}, expected 0 or more; correct the option"
            )
        if self.fold is not None and self.labels is not None:
            raise UserError("found --fold and --labels, expected one of them; leave one out")
        dataset = find_dataset(self.dataset)
        folders = named_folders(self.predictions)
        if self.fold is None:
            truths = truth_files(dataset, self.labels)
            test_sets = cases_by_test_set(dataset, self.labels, list(truths))
        else:
            truths = validation_files(dataset, self.fold)
            test_sets = {f"validation of fold {self.fold}": list(truths)}
        scores = score_folders(dataset, truths, folders, self.nsd_tolerance, self.processes)
        groups = {case: dataset.groups.get(case, case) for case in truths}
        rows = summarise(scores, groups, test_sets, list(dataset.regions), self.seed)
        evaluation = Evaluation(
            dataset,
            folders,
            truths,
            test_sets,
            scores,
            rows,
            nsd_tolerance=self.nsd_tolerance,
            seed=self.seed,
        )
        write_report(evaluation, self.out)
        print_summary(evaluation, self.out)


def named_folders(predictions: tuple[str, ...]) -> dict[str, Path]:
    """Parse DIR or NAME=DIR into name -> folder. UserError: no such folder, a name given twice."""
    if not predictions:
        raise UserError("found no predictions, expected at least one folder; give --predictions DIR")
    folders: dict[str, Path] = {}
    for text in predictions:
        name, separator, folder = text.partition("=")
        path = Path(folder if separator and not Path(text).is_dir() else text)
        name = name if path != Path(text) else path.resolve().name
        if not path.is_dir():
            raise UserError(f"{path}: found no such folder, expected predictions; run nnUNetv2_predict")
        if name in folders:
            raise UserError(f"found two predictions called {name}, expected different names; give NAME=DIR")
        folders[name] = path
    return folders


def truth_files(dataset: RawDataset, labels: Path | None) -> dict[str, Path]:
    """Case id -> label file, of `labels` or else labelsTs. UserError: none, or a test case without one."""
    if labels is not None:
        files = files_by_id(Path(labels), dataset.file_ending)
        if not files:
            raise UserError(
                f"{labels}: found no {dataset.file_ending} files, expected labels; check the folder"
            )
        return files
    missing = [case.id for case in dataset.test_cases if case.label is None]
    if missing or not dataset.test_cases:
        found = f"no label for {missing[0]} ({len(missing)} such)" if missing else "no test cases"
        raise UserError(
            f"{dataset.folder}: found {found}, expected labelsTs for all of imagesTs; give --labels DIR"
        )
    return {case.id: case.label for case in dataset.test_cases}


def validation_files(dataset: RawDataset, fold: int) -> dict[str, Path]:
    """Case id -> label file of a fold's validation cases. UserError: no such fold, or none in it."""
    _, validation = fold_cases(dataset, fold)
    if not validation:
        raise UserError(
            f"{dataset.folder}: found no validation cases in fold {fold}, expected some; give another --fold"
        )
    return {case_id: dataset.case(case_id).label for case_id in validation}


def cases_by_test_set(dataset: RawDataset, labels: Path | None, cases: list[str]) -> dict[str, list[str]]:
    """Test set -> case ids: test_sets.json, or one set named after the label folder or the cases' origin."""
    if labels is not None:
        return {Path(labels).resolve().name: cases}
    return dataset.test_sets or {dataset.origin: cases}


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
    truth, prediction = (dataset.read_label(path) for path in files)
    if truth.shape != prediction.shape:
        raise UserError(
            f"{files[1]}: found size {prediction.shape}, expected the label's {truth.shape} (Z, Y, X); "
            "predict from the images of this data set"
        )
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
