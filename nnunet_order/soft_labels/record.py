"""distillation.json of a raw data set: whose soft labels it has, and which images had no outlines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.system.json_files import as_json, read_json, write_json

RECORD = "distillation.json"
REMEDY = "make the data set again with nnunet-order distill"


@dataclass(frozen=True)
class TeacherRecord:
    """The model whose probabilities the soft labels are."""

    name: str
    """Its results folder's, and its folds."""
    sha256: str
    """Over plans.json, dataset.json and checkpoints."""
    dataset: str
    origin: str
    """As `RawDataset.origin`, of its data set."""
    train_cases: list[str] | None
    """All that it has learned from; None where that is not known."""


@dataclass(frozen=True)
class UnlabelledRecord:
    """An image without outlines that belongs to the data set."""

    file: str
    """Name of its file."""
    sha256: str
    """Of its pixels as nnU-Net reads them."""
    group: str | None
    """Its patient or sequence; None where that is not known."""


@dataclass(frozen=True)
class DistillationRecord:
    """distillation.json."""

    source: str
    """Name of the data set that the labelled cases are from."""
    origin: str
    fold: int | str
    teacher: TeacherRecord
    unlabelled: dict[str, UnlabelledRecord]
    """Case id -> image."""
    versions: dict[str, str | None]


def write_distillation(folder: Path, record: DistillationRecord) -> None:
    """Write distillation.json into a raw data set."""
    write_json(folder / RECORD, as_json(record))


def read_distillation(folder: Path) -> DistillationRecord | None:
    """distillation.json of a raw data set; None where there is none. UserError: damaged."""
    path = folder / RECORD
    return read_json(path, DistillationRecord, REMEDY) if path.is_file() else None
