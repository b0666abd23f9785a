"""The verb `evaluate`: predictions against labels, per test set, with intervals and paired differences."""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.raw.cases import files_by_id
from dataset_conversion.raw.dataset import RawDataset, find_dataset
from dataset_conversion.raw.folds import fold_cases
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.folders import check_report_folder
from nnunet_order.evaluation import Evaluation, score_folders, summarise
from nnunet_order.evaluation_output import FILES, print_summary, write_report
from nnunet_order.options import Evaluate


def evaluate(options: Evaluate) -> None:
    """Score, write the report and print its table.

    UserError: bad options, no such data set or folder, predictions that do not fit their labels.
    """
    options.check()
    check_report_folder(options.out, FILES)
    dataset = find_dataset(options.dataset)
    folders = named_folders(options.predictions)
    if options.fold is None:
        truths = truth_files(dataset, options.labels)
        test_sets = cases_by_test_set(dataset, options.labels, list(truths))
    else:
        truths = validation_files(dataset, options.fold)
        test_sets = {f"validation of fold {options.fold}": list(truths)}
    scores = score_folders(dataset, truths, folders, options.nsd_tolerance, options.processes)
    groups = {case: dataset.groups.get(case, case) for case in truths}
    evaluation = Evaluation(
        dataset,
        folders,
        truths,
        test_sets,
        scores,
        summarise(scores, groups, test_sets, list(dataset.regions), options.seed),
        nsd_tolerance=options.nsd_tolerance,
        seed=options.seed,
    )
    write_report(evaluation, options.out)
    print_summary(evaluation, options.out)


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
