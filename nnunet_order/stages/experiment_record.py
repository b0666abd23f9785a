"""experiment.json: which experiment a folder holds, on which device it began, and where its parts lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dataset_conversion.raw.folds import Fold
from dataset_conversion.system.errors import UserError, check_writable
from dataset_conversion.system.files import read_text
from dataset_conversion.system.json_files import as_json, parse_json, write_json

FORMAT = 1
NAME = "experiment.json"
ELSEWHERE = "choose another --out"

Part = TypeVar("Part")


@dataclass(frozen=True)
class SegmentationEntry:
    """One nnU-Net training with its predictions and scores."""

    name: str
    arm: str
    trainer: str
    fold: Fold
    seed: int
    dataset: str
    predictions: str
    """Folder, as are `scores`, `run` and `evaluation`; all below the experiment's."""
    scores: str


@dataclass(frozen=True)
class SynthesisEntry:
    """One LAW training with the data set that it generates."""

    name: str
    arm: str
    fold: Fold
    seed: int
    round: int
    run: str
    dataset: str
    evaluation: str


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """What experiment.json holds once the stages are known."""

    format: int = FORMAT
    kind: str = ""
    """The command that writes it; another one leaves the folder alone."""
    command: str = ""
    """The whole command line."""
    title: str
    config: dict[str, Any] = field(default_factory=dict)
    """The options, with the device that "auto" came to."""
    real: str
    """Folder of the real data set."""
    on: Literal["test", "validation"]
    """The cases on which the trainings are measured."""
    iterations: int | None = None
    """Iterations per epoch, of every arm; None: the trainers' own."""
    reference: str
    """The arm with which the others are compared."""
    arms: list[str]
    trainers: list[str]
    folds: list[Fold]
    seeds: list[int]
    segmentations: list[SegmentationEntry]
    syntheses: list[SynthesisEntry]
    stages: dict[str, str] | None = None
    """Stage name -> key. None: `nnunet-order compare`, which writes no report."""


def read_experiment(folder: Path) -> ExperimentRecord:
    """UserError: no experiment.json, another format, a damaged file."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder}: found no {NAME}, expected the folder of an experiment; correct the path")
    remedy = "run `law-synth experiment` again"
    found = _read(path, _Format, remedy).format
    if found != FORMAT:
        raise UserError(f"{path}: found format {found}, expected format {FORMAT}; {remedy}")
    return _read(path, ExperimentRecord, remedy)


def claim_folder(folder: Path, kind: str) -> None:
    """Write an experiment.json that says no more than `kind`, unless the folder has one of this kind.

    UserError: the folder holds something else, or an experiment of another kind.
    """
    path = folder / NAME
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder for the experiment; {ELSEWHERE}")
    check_writable(folder)
    if not path.is_file():
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        # A kill may have left a part of the first record.
        if not all(re.fullmatch(r"\.experiment\.json\..*\.partial", name) for name in names):
            raise UserError(f"{folder}: found other content, expected an experiment or nothing; {ELSEWHERE}")
        write_json(path, {"kind": kind})
    found = _read(path, _Kind, ELSEWHERE).kind
    if found != kind:
        found = found or "an unknown kind"
        raise UserError(f"{path}: found an experiment of {found}, expected one of {kind}; {ELSEWHERE}")


def begin(folder: Path, record: ExperimentRecord) -> None:
    """Write experiment.json. UserError: as `claim_folder`.

    An experiment of the same kind that has changed goes on; its changed stages start over.
    """
    claim_folder(folder, record.kind)
    write_json(folder / NAME, {name: value for name, value in as_json(record).items() if value is not None})


def recorded_device(folder: Path) -> str | None:
    """The device that an experiment began with; None where there is none. UserError: a damaged file."""
    device = _read_part(folder, _Settings).config.device
    return None if device == "auto" else device  # of an experiment that older versions began


def recorded_datasets(folder: Path) -> list[str]:
    """The synthetic data sets of an experiment; none where it has not begun. UserError: a damaged file."""
    return [one.dataset for one in _read_part(folder, _Syntheses).syntheses]


@dataclass(frozen=True)
class _Format:
    format: int | None = None


@dataclass(frozen=True)
class _Kind:
    kind: str | None = None


@dataclass(frozen=True)
class _Device:
    device: str = "auto"


@dataclass(frozen=True)
class _Settings:
    config: _Device = field(default_factory=_Device)


@dataclass(frozen=True)
class _Dataset:
    dataset: str


@dataclass(frozen=True)
class _Syntheses:
    syntheses: list[_Dataset] = field(default_factory=list)


def _read_part(folder: Path, kind: type[Part]) -> Part:
    path = folder / NAME
    return _read(path, kind, ELSEWHERE) if path.is_file() else kind()


def _read(path: Path, kind: type[Part], remedy: str) -> Part:
    """As `read_json`. Earlier versions wrote an infinite bound as Infinity, which JSON does not have."""
    return parse_json(re.sub(r"(?<=: )Infinity\b", '"inf"', read_text(path)), kind, path, remedy)
