"""What an experiment's folder holds by now: scores, syntheses, stages; and what is not there yet."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset, read_dataset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json, read_lenient_json
from law_synth.records.run import CONFIG, RunConfig, read_config
from law_synth.records.synthetic import SynthesisRow, read_rows
from law_synth.view.slices import slice_axis
from nnunet_order.comparing.scores import CaseScores, read_csv, read_scores
from nnunet_order.metrics import FOREGROUND_MEAN
from nnunet_order.stages.experiment_record import ExperimentRecord, SynthesisEntry, read_experiment
from nnunet_order.stages.stage_record import StageRecord

LOG = "log.jsonl"  # law_synth.training.state.LOG, whose module needs torch


@dataclass(frozen=True)
class SynthesisResult:
    """One LAW training with the data set generated from it; a part that is not there yet is empty."""

    name: str
    arm: str
    fold: int | str
    seed: int
    run: str
    """Its training's folder, which later rounds share."""
    dataset: Path
    manifest: list[SynthesisRow]
    """Rows of synthesis.jsonl, one per generated image."""
    evaluation: dict
    cases: list[dict[str, str]]
    """Rows of the evaluation's per_case.csv."""
    log: list[dict]
    deltas: dict[int, Path]
    """Step -> delta maps, float (cases, h, w) in a .npy file."""
    config: RunConfig | None
    """law_config.json of the run."""


@dataclass(frozen=True)
class Results:
    """Everything that the report is made of; `read_results` makes it."""

    folder: Path
    description: ExperimentRecord
    scores: list[CaseScores]
    syntheses: list[SynthesisResult]
    stages: list[StageRecord]
    """Records of finished stages in the order of their starts."""
    missing: list[str]
    """Parts that are not there yet, in words."""

    @property
    def arms(self) -> list[str]:
        """Arms in the order of experiment.json."""
        parts = [*self.description.segmentations, *self.description.syntheses]
        return list(dict.fromkeys([*self.description.arms, *(part.arm for part in parts)]))

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.description.reference

    @cached_property
    def real(self) -> RawDataset | None:
        """The real data set, once it has been made."""
        folder = self.folder / self.description.real
        return read_dataset(folder) if (folder / "dataset.json").is_file() else None

    @cached_property
    def real_cases(self) -> dict[str, Case]:
        """Case id -> labelled real case, training and test."""
        cases = [] if self.real is None else [*self.real.training_cases, *self.real.test_cases]
        return {case.id: case for case in cases if case.label is not None}

    @cached_property
    def labels(self) -> list[str]:
        """What is scored: the mean over the labels and, of several, each of them."""
        return list(dict.fromkeys(group.label for group in self.scores)) or [FOREGROUND_MEAN]

    @cached_property
    def by_test_set(self) -> dict[tuple[str, str], dict[str, CaseScores]]:
        """(Trainer, test set) -> label -> scores; the mean comes first."""
        found: dict[tuple[str, str], dict[str, CaseScores]] = {}
        for one in self.scores:
            found.setdefault((one.trainer, one.test_set), {})[one.label] = one
        return found

    @cached_property
    def axis(self) -> int:
        """Of the slices in real arrays (Z, Y, X)."""
        return slice_axis(self.real, [case.id for case in self.real.training_cases]) or 0

    @cached_property
    def training_shares(self) -> dict[str, np.ndarray]:
        """Label -> its share of each real training slice that has it."""
        shares: dict[str, list[np.ndarray]] = {}
        for case in self.real.training_cases if self.real else ():
            for label, found in self.slice_shares(case).items():
                shares.setdefault(label, []).append(found[found > 0])
        return {label: np.concatenate(found) for label, found in shares.items()}

    def lesion_shares(self, case_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Label -> case id -> its share of the image; of a volume, of the slice with the most of it."""
        known = [case_id for case_id in case_ids if case_id in self.real_cases]
        shares: dict[str, dict[str, float]] = {}
        for case_id in track(known, "Measuring lesions", transient=True):
            for label, found in self.slice_shares(self.real_cases[case_id]).items():
                shares.setdefault(label, {})[case_id] = float(found.max())
        return shares

    def slice_shares(self, case: Case) -> dict[str, np.ndarray]:
        """Label -> its share of each slice of a real case; the ignore label's pixels do not count.

        The foreground is all labels together.
        """
        truth = np.moveaxis(self.real.read_label(case.label), self.axis, 0)
        truth = truth.reshape(len(truth), -1)  # (slices, pixels)
        counted = truth != self.real.ignore_label  # all, where there is none
        masks = {FOREGROUND_MEAN: truth > 0}
        if len(self.real.regions) > 1:
            masks |= {name: np.isin(truth, values) for name, values in self.real.regions.items()}
        pixels = np.maximum(counted.sum(axis=1), 1)
        return {label: (mask & counted).sum(axis=1) / pixels for label, mask in masks.items()}


def read_results(folder: Path) -> Results:
    """Read an experiment's folder. UserError: no experiment, another format, a damaged file."""
    description = read_experiment(folder)
    if description.stages is None:
        raise UserError(
            f"{folder}: found a comparison, expected what law-synth experiment has begun; correct the path"
        )
    missing: list[str] = []
    stages = read_stages(folder / "stages", description.stages, missing)
    outdated = {record.name for record in stages if record.key != description.stages.get(record.name)}
    scores = read_scores(folder, description, missing, outdated)
    syntheses = [read_synthesis(folder, entry, missing, outdated) for entry in description.syntheses]
    return Results(folder, description, scores, syntheses, stages, missing)


def read_synthesis(
    folder: Path, entry: SynthesisEntry, missing: list[str], outdated: Collection[str] = ()
) -> SynthesisResult:
    """One entry of `syntheses`, as far as it is there and its evaluation is not `outdated`."""
    dataset, evaluation, run = (folder / part for part in (entry.dataset, entry.evaluation, entry.run))
    finished, judged = dataset / "dataset.json", evaluation / "evaluation.json"
    parts = {"LAW training": run / CONFIG, "synthetic data set": finished, "evaluation": judged}
    missing += [f"{what} of {entry.name}" for what, path in parts.items() if not path.is_file()]
    is_judged = judged.is_file()
    if is_judged and f"evaluate_{entry.name}" in outdated:
        is_judged = False
        missing.append(f"evaluation of {entry.name} (there is one of an earlier configuration)")
    deltas = {int(path.stem.split("_")[1]): path for path in sorted(run.glob("samples/delta_*.npy"))}
    return SynthesisResult(
        name=entry.name,
        arm=entry.arm,
        fold=entry.fold,
        seed=entry.seed,
        run=entry.run,
        dataset=dataset,
        manifest=read_rows(dataset) if finished.is_file() else [],
        evaluation=read_lenient_json(judged, dict[str, Any], "run its stage again") if is_judged else {},
        cases=read_csv(evaluation / "per_case.csv") if is_judged else [],
        log=_load_lines(run / LOG),
        deltas=deltas,
        config=read_config(run) if (run / CONFIG).is_file() else None,
    )


def read_stages(folder: Path, names: Iterable[str], missing: list[str]) -> list[StageRecord]:
    """Records of the finished ones of `names` by start; others that have begun go into `missing`."""
    records = []
    for name in names:
        if (folder / f"{name}.json").is_file():
            records.append(read_json(folder / f"{name}.json", StageRecord, "run its stage again"))
        # The stage that runs this very command has not finished, either.
        elif name != "report" and (folder / f"{name}.begun.json").is_file():
            missing.append(f"stage {name} (begun)")
    return sorted(records, key=lambda record: (record.started, record.name))


def _load_lines(path: Path) -> list[dict]:
    """JSON lines; none without the file. A last line without its end is still being written."""
    if not path.is_file():
        return []
    lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: malformed ({error}), expected JSON lines; run its stage again") from None
