"""The lists beside dataset.json: groups.json (cases by patient or sequence) and test_sets.json."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import read_json, write_json
from dataset_conversion.system.names import check_case_id, check_name, refuse_lookalikes

GROUPS, TEST_SETS = "groups.json", "test_sets.json"
CORRECT = "correct it"


def listed_groups(folder: Path, known: Collection[str]) -> dict[str, str]:
    """Case id -> its patient or sequence, from groups.json; empty where there is no such file.

    UserError: a wrong type, an odd name, names that are too much alike, an id that is not `known`.
    """
    path = folder / GROUPS
    if not path.is_file():
        return {}
    groups = read_json(path, dict[str, str], CORRECT)
    refuse_lookalikes(groups, "case ids", path)
    groups = {
        check_case_id(case_id, path): check_name(name, "group", path) for case_id, name in groups.items()
    }
    _check_known(groups, known, "cases", path)
    return groups


def listed_test_sets(folder: Path, known: Collection[str]) -> dict[str, list[str]]:
    """Test set -> case ids, from test_sets.json; empty where there is no such file.

    UserError: as `listed_groups`.
    """
    path = folder / TEST_SETS
    if not path.is_file():
        return {}
    sets = read_json(path, dict[str, list[str]], CORRECT)
    refuse_lookalikes(sets, "test sets", path)
    sets = {
        check_name(name, "test set", path): [check_case_id(case_id, path) for case_id in ids]
        for name, ids in sets.items()
    }
    _check_known((case_id for ids in sets.values() for case_id in ids), known, "imagesTs", path)
    return sets


def write_groups(folder: Path, groups: Mapping[str, str]) -> None:
    """Write groups.json."""
    write_json(folder / GROUPS, dict(groups))


def write_test_sets(folder: Path, sets: Mapping[str, list[str]]) -> None:
    """Write test_sets.json."""
    write_json(folder / TEST_SETS, dict(sets))


def _check_known(case_ids: Iterable[str], known: Collection[str], where: str, path: Path) -> None:
    if unknown := sorted(set(case_ids) - set(known)):
        raise UserError(
            f"{path}: found {unknown[0]} ({len(unknown)} such), expected ids of {where}; correct it"
        )
