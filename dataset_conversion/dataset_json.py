"""What nnU-Net's dataset.json may say about channels and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dataset_conversion.user_error import UserError


def check_channel_names(names: Mapping, path: Path) -> None:
    """UserError unless `names` is {"0": name, "1": name, ...}; reversed ({"R": 0}) is the usual mistake."""
    if not isinstance(names, dict) or sorted(names) != sorted(str(i) for i in range(len(names))) or not names:
        raise UserError(
            f'{path}: found channel_names {json.dumps(names)}, expected {{"0": "R", "1": "G", ...}}: '
            "from index to name, counted from 0; swap or renumber them"
        )


def check_labels(labels: Mapping, regions_class_order: list[int] | None, path: Path) -> None:
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
            f"{path}: found labels {shown}, expected ignore as the highest value of its own; renumber"
        )
    has_regions = any(isinstance(value, (list, tuple)) and len(value) > 1 for value in values)
    n_regions = len(set(labels) - {"background", "ignore"})
    if has_regions and len(regions_class_order or []) != n_regions:
        raise UserError(
            f"{path}: found regions_class_order {regions_class_order}, expected one value for each of the "
            f"{n_regions} regions of {shown}; add them"
        )


def label_values(labels: Mapping) -> list[int]:
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


def load_table(path: Path, expected: str, remedy: str) -> dict:
    """A JSON file that holds an object; `expected` and `remedy` say what it should be and what to do.

    UserError: not there, unreadable, empty, truncated, malformed, or another kind of JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected {expected}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed ({error}), expected {expected}; {remedy}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: malformed ({kind}, not an object), expected {expected}; {remedy}")
    return content


def load_json(path: Path) -> dict | list:
    """A JSON file of a data set. UserError: not there, malformed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected an nnU-Net raw data set; check the folder") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: malformed ({error}), expected JSON; correct the file") from None
    if not isinstance(content, (dict, list)):
        raise UserError(f"{path}: found {content!r:.40}, expected an object or a list; correct the file")
    return content
