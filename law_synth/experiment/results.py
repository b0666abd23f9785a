"""What an experiment's folder holds by now: scores, syntheses, stages; and what is not there yet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import track

from dataset_conversion.raw import Case, RawDataset, read_dataset
from dataset_conversion.user_error import UserError
from law_synth.run_folder import CONFIG
from nnunet_order.metrics import METRICS

FORMAT = 1
LOG = "log.jsonl"  # law_synth.training.state.LOG, whose module needs torch
VALIDATION = "validation"  # name of the pooled validation cases of all folds
KEYS = (
    "title",
    "real",
    "on",
    "reference",
    "arms",
    "trainers",
    "folds",
    "seeds",
    "segmentations",
    "syntheses",
)


@dataclass(frozen=True)
class CaseScores:
    """Scores of one trainer on one test set, paired by training and case."""

    trainer: str
    test_set: str
    cases: list[str]
    trainings: list[tuple]
    """One per row: (seed,) where the cases of all folds are pooled, else (fold, seed)."""
    values: dict[str, dict[str, np.ndarray]]
    """Arm -> metric -> (trainings, cases), the mean over the labels; NaN: nothing to find, or not there."""


@dataclass(frozen=True)
class Synthesis:
    """One LAW training with the data set generated from it; a part that is not there yet is empty."""

    name: str
    arm: str
    fold: int | str
    seed: int
    run: str
    """Its training's folder, which later rounds share."""
    dataset: Path
    manifest: list[dict]
    """Rows of synthesis.jsonl, one per generated image."""
    evaluation: dict
    cases: list[dict[str, str]]
    """Rows of the evaluation's per_case.csv."""
    log: list[dict]
    deltas: dict[int, Path]
    """Step -> delta maps, float (cases, h, w) in a .npy file."""
    config: dict
    """law_config.json of the run."""


@dataclass(frozen=True)
class Results:
    """Everything that the report is made of; `read_results` makes it."""

    folder: Path
    description: dict
    scores: list[CaseScores]
    syntheses: list[Synthesis]
    stages: list[dict]
    """Records of finished stages in the order of their starts."""
    missing: list[str]
    """Parts that are not there yet, in words."""

    @property
    def arms(self) -> list[str]:
        """Arms in the order of experiment.json."""
        parts = [*self.description["segmentations"], *self.description["syntheses"]]
        return list(dict.fromkeys([*self.description["arms"], *(part["arm"] for part in parts)]))

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.description["reference"]

    @cached_property
    def real(self) -> RawDataset | None:
        """The real data set, once it has been made."""
        folder = self.folder / self.description["real"]
        return read_dataset(folder) if (folder / "dataset.json").is_file() else None

    @cached_property
    def real_cases(self) -> dict[str, Case]:
        """Case id -> labelled real case, training and test."""
        cases = [] if self.real is None else [*self.real.training_cases, *self.real.test_cases]
        return {case.id: case for case in cases if case.label is not None}

    @cached_property
    def training_shares(self) -> np.ndarray:
        """The lesion's share of each real training image."""
        if self.real is None:
            return np.empty(0)
        shares = self.lesion_shares([case.id for case in self.real.training_cases])
        return np.array(list(shares.values()))

    def lesion_shares(self, case_ids: Iterable[str]) -> dict[str, float]:
        """Case id -> share of the image that is foreground, all labels together; the ignore label aside."""
        known = [case_id for case_id in case_ids if case_id in self.real_cases]
        shares = {}
        for case_id in track(known, "Measuring lesions", transient=True):
            label = self.real.read_label(self.real_cases[case_id].label)
            counted = (
                np.ones(label.shape, bool)
                if self.real.ignore_label is None
                else (label != self.real.ignore_label)
            )
            shares[case_id] = float(((label > 0) & counted).sum() / max(counted.sum(), 1))
        return shares


def read_results(folder: Path) -> Results:
    """Read an experiment's folder. UserError: no experiment, another format, a damaged file."""
    path = folder / "experiment.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: found no experiment.json, expected the folder of `law-synth experiment`; correct OUT"
        )
    description = _load_json(path)
    absent = [key for key in KEYS if key not in description]
    if description.get("format") != FORMAT or absent:
        found = f"format {description.get('format')}" + (f" without {absent[0]}" if absent else "")
        raise UserError(f"{path}: found {found}, expected format {FORMAT}; run `law-synth experiment` again")
    missing: list[str] = []
    scores = read_scores(folder, description, missing)
    syntheses = [read_synthesis(folder, entry, missing) for entry in description["syntheses"]]
    stages = read_stages(folder / "stages", missing)
    return Results(folder, description, scores, syntheses, stages, missing)


def read_scores(folder: Path, description: Mapping, missing: list[str]) -> list[CaseScores]:
    """Scores by trainer and test set, in the order of experiment.json."""
    pooled = description["on"] == VALIDATION
    found: dict[tuple[str, str], dict[tuple[str, tuple, str], np.ndarray]] = {}
    for entry in description["segmentations"]:
        path = folder / entry["scores"] / "per_case.csv"
        if not path.is_file():
            missing.append(f"scores of {entry['name']}")
            continue
        training = (entry["seed"],) if pooled else (entry["fold"], entry["seed"])
        for (test_set, case), values in read_case_means(path).items():
            group = found.setdefault((entry["trainer"], VALIDATION if pooled else test_set), {})
            group[entry["arm"], training, case] = values
    order = {trainer: position for position, trainer in enumerate(description["trainers"])}
    ranked = sorted(found.items(), key=lambda item: order.get(item[0][0], len(order)))
    return [_as_arrays(trainer, test_set, group) for (trainer, test_set), group in ranked]


def read_case_means(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """(Test set, case) -> mean over its labels of each of `METRICS`, from per_case.csv of one prediction."""
    labels: dict[tuple[str, str], list[list[float]]] = {}
    for row in _load_csv(path):
        values = [float(row[metric] or "nan") for metric in METRICS]
        labels.setdefault((row["test_set"], row["case"]), []).append(values)
    return {key: nan_mean(np.array(rows), axis=0) for key, rows in labels.items()}


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def read_synthesis(folder: Path, entry: Mapping, missing: list[str]) -> Synthesis:
    """One entry of `syntheses`, as far as it is there."""
    dataset, evaluation, run = (folder / entry[key] for key in ("dataset", "evaluation", "run"))
    finished, judged = dataset / "dataset.json", evaluation / "evaluation.json"
    parts = {"LAW training": run / CONFIG, "synthetic data set": finished, "evaluation": judged}
    missing += [f"{what} of {entry['name']}" for what, path in parts.items() if not path.is_file()]
    deltas = {int(path.stem.split("_")[1]): path for path in sorted(run.glob("samples/delta_*.npy"))}
    return Synthesis(
        name=entry["name"],
        arm=entry["arm"],
        fold=entry["fold"],
        seed=entry["seed"],
        run=entry["run"],
        dataset=dataset,
        manifest=_load_lines(dataset / "synthesis.jsonl") if finished.is_file() else [],
        evaluation=_load_json(judged) if judged.is_file() else {},
        cases=_load_csv(evaluation / "per_case.csv") if judged.is_file() else [],
        log=_load_lines(run / LOG),
        deltas=deltas,
        config=_load_json(run / CONFIG) if (run / CONFIG).is_file() else {},
    )


def read_stages(folder: Path, missing: list[str]) -> list[dict]:
    """Records of finished stages by start; others that have begun go into `missing`."""
    records = []
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".begun.json"):
            name = path.name.removesuffix(".begun.json")
            # The stage that runs this very command has not finished, either.
            if name != "report" and not (folder / f"{name}.json").is_file():
                missing.append(f"stage {name} (begun)")
        else:
            records.append(_load_json(path))
    return sorted(records, key=lambda record: (record["started"], record["name"]))


def _as_arrays(trainer: str, test_set: str, group: Mapping[tuple, np.ndarray]) -> CaseScores:
    """(arm, training, case) -> values of `METRICS`, as arrays in which trainings and cases are paired."""
    arms, trainings, cases = (list(dict.fromkeys(column)) for column in zip(*group, strict=True))
    trainings = sorted(trainings, key=lambda training: tuple(map(str, training)))
    cases = sorted(cases)
    row, column = ({key: index for index, key in enumerate(keys)} for keys in (trainings, cases))
    arrays = {arm: np.full((len(METRICS), len(trainings), len(cases)), np.nan) for arm in arms}
    for (arm, training, case), values in group.items():
        arrays[arm][:, row[training], column[case]] = values
    by_metric = {arm: dict(zip(METRICS, array, strict=True)) for arm, array in arrays.items()}
    return CaseScores(trainer, test_set, cases, trainings, by_metric)


def _load_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: malformed ({error}), expected JSON; run its stage again") from None


def _load_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _load_lines(path: Path) -> list[dict]:
    """JSON lines; none without the file. A last line without its end is still being written."""
    if not path.is_file():
        return []
    lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: malformed ({error}), expected JSON lines; run its stage again") from None
