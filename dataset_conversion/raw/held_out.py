"""Which cases of a data set a fold does not train on, and whose file one from elsewhere is, by its name."""

from __future__ import annotations

from collections.abc import Collection

from dataset_conversion.raw.cases import Case
from dataset_conversion.raw.dataset import RawDataset
from dataset_conversion.system.names import match_key


def unseen_cases(dataset: RawDataset, training: Collection[str]) -> dict[str, Case]:
    """Id -> case of all training and test cases but those of `training`."""
    cases = (*dataset.training_cases, *dataset.test_cases)
    return {case.id: case for case in cases if case.id not in training}


def held_out_groups(dataset: RawDataset, training: Collection[str]) -> dict[str, str]:
    """Group -> one of its cases, of all groups with a case outside `training`."""
    return {dataset.groups[case_id]: case_id for case_id in sorted(unseen_cases(dataset, training))}


def group_by_name(name: str, dataset: RawDataset, held_out: Collection[str] = ()) -> str | None:
    """Group of the case, or the group, after which a file is named; None where it is named otherwise.

    The name of its path, or of a part of it from some folder on, is that name, or begins with it and goes on
    with `_`, `-`, `.` or `/`; the longest one counts, and letter case does not. Where folders and file tell
    of several groups, a `held_out` one goes before others.
    """
    parts = name.split("/")
    told = [_group_told_by("/".join(parts[first:]), dataset) for first in range(len(parts))]
    known = [group for group in told if group is not None]
    return next((group for group in known if group in held_out), known[0] if known else None)


def _group_told_by(name: str, dataset: RawDataset) -> str | None:
    ends = [i for i, letter in enumerate(name) if letter in "_-./"]
    keys = (match_key(name[:end]) for end in (len(name), *reversed(ends)))
    return next((dataset.groups_by_key[key] for key in keys if key in dataset.groups_by_key), None)
