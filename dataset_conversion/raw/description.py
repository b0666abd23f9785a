"""nnU-Net's dataset.json: what it may say about channels, labels and files."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import converted

Labels = dict[str, int | list[int]]

DESCRIPTION = "dataset.json"
CORRECT = "correct it (see nnU-Net's dataset format)"


@dataclass(frozen=True)
class ListedFiles:
    """The files of a case, as paths from the data set's folder; they may name environment variables."""

    images: list[str]
    label: str


@dataclass(frozen=True)
class Description:
    """What the project reads of a dataset.json; nnU-Net and others may have put more into it."""

    channel_names: dict[str, str]
    labels: Labels
    numTraining: int
    file_ending: str
    regions_class_order: list[int] | None = None
    dataset: dict[str, ListedFiles] = field(default_factory=dict)
    """Case id -> files, where they do not have the usual names."""
    subset_of: str = ""
    """The data set from which `convert subset` took the cases."""
    overwrite_image_reader_writer: str = ""
    max_side: int | None = None
    """Pixels of an image's longer side to which the conversion has shrunk larger images; None: no limit."""


def description_of(content: dict[str, Any], path: Path) -> Description:
    """The content of a dataset.json as its type.

    UserError: a wrong type, a missing key, or what nnU-Net would refuse; it names the file `path`.
    """
    if "channel_names" in content and "labels" in content:  # the usual mistakes are explained
        check_channel_names(content["channel_names"], path)
        check_label_table(content["labels"], path)
    description = converted(content, Description, path, CORRECT)
    check_regions(description.labels, description.regions_class_order, path)
    check_max_side(description.max_side, path)
    if not re.fullmatch(r"\.[\w.]+", description.file_ending):
        raise UserError(
            f'{path}: found file_ending "{description.file_ending}", expected one with a dot, like ".png"; '
            "correct it"
        )
    return description


def description_bytes(
    scratch: Path,
    channel_names: Mapping[str, str],
    labels: Mapping[str, int | list[int]],
    num_training_cases: int,
    **about: Any,
) -> bytes:
    """A dataset.json as nnU-Net writes it.

    Args:
        scratch: existing folder for a temporary one.
        about: further options of nnU-Net's `generate_dataset_json`, and keys to add.
    """
    from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        generate_dataset_json(
            folder,
            channel_names=dict(channel_names),
            labels=dict(labels),  # nnU-Net changes it
            num_training_cases=num_training_cases,
            **about,
        )
        return (Path(folder) / DESCRIPTION).read_bytes()


def check_channel_names(names: object, path: Path) -> None:
    """UserError unless `names` is {"0": name, "1": name, ...}; reversed ({"R": 0}) is the usual mistake."""
    if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))) or not names:
        raise UserError(
            f'{path}: found channel_names {json.dumps(names)}, expected {{"0": "R", "1": "G", ...}}: '
            "from index to name, counted from 0; swap or renumber them"
        )


def check_labels(labels: object, regions_class_order: Sequence[int] | None, path: Path) -> None:
    """UserError: as `check_label_table` and `check_regions`."""
    check_label_table(labels, path)
    check_regions(labels, regions_class_order, path)


def check_label_table(labels: object, path: Path) -> None:
    """UserError unless `labels` is {"background": 0, name: value or [values], ...}, values consecutive."""
    shown = json.dumps(labels)
    values = list(labels.values()) if isinstance(labels, dict) else [None]
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    if not all(type(v) is int for v in flat) or labels.get("background") != 0:
        raise UserError(
            f'{path}: found labels {shown}, expected {{"background": 0, "polyp": 1, ...}}: '
            "from name to value, background 0; swap or correct them"
        )
    if min(flat) < 0 or len(set(flat)) != max(flat) + 1:
        raise UserError(
            f"{path}: found labels {shown}, expected consecutive values 0, 1, 2, ...; renumber them"
        )
    if "ignore" in labels and (labels["ignore"] != max(flat) or flat.count(max(flat)) > 1):
        raise UserError(
            f"{path}: found labels {shown}, expected ignore to have the highest value, and no other label to "
            "have that; renumber them"
        )


def check_regions(labels: Mapping, regions_class_order: Sequence[int] | None, path: Path) -> None:
    """UserError unless labels with regions (several values) come with a value for each in the order."""
    has_regions = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in labels.values())
    n_regions = len(set(labels) - {"background", "ignore"})
    if has_regions and len(regions_class_order or []) != n_regions:
        raise UserError(
            f"{path}: found regions_class_order {regions_class_order}, expected one value for each of the "
            f"{n_regions} regions of {json.dumps(labels)}; add them"
        )


def check_max_side(max_side: int | None, path: Path) -> None:
    """UserError unless `max_side` is None or a number of pixels."""
    if max_side is not None and max_side < 1:
        raise UserError(f"{path}: found max_side {max_side}, expected 1 px or more; correct it")


def label_values(labels: Mapping[str, int | Sequence[int]]) -> list[int]:
    """Every value named in the `labels` table of dataset.json, sorted."""
    return sorted(
        {v for value in labels.values() for v in (value if isinstance(value, (list, tuple)) else [value])}
    )


def check_label_values(label: np.ndarray, allowed: list[int], name: str) -> None:
    """UserError when `label` (any shape) holds a value that is not in `allowed`."""
    found = np.unique(label)
    outside = [f"{value:g}" for value in found.tolist() if value not in allowed]
    if outside:
        remedy = "save 0/255 masks as 0/1" if outside == ["255"] else "correct the mask or dataset.json"
        raise UserError(
            f"{name}: found label values {', '.join(outside[:5])}, expected only {allowed}; {remedy}"
        )
