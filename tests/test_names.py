"""Ids, names and recorded paths: checked where they are read, and one spelling for whatever people type."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.raw.dataset import read_dataset
from dataset_conversion.raw.folds import read_splits
from dataset_conversion.raw.writer import RGB, RawDatasetWriter
from dataset_conversion.subset import ConvertSubset, convert_subset
from dataset_conversion.system.errors import UserError
from dataset_conversion.system.names import check_case_id, check_inside, match_key, refuse_lookalikes
from dataset_conversion.system.resumable import Journal, resumable_folder
from nnunet_order.evaluate import evaluate
from nnunet_order.options import Evaluate

COMPOSED = "Zoë"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)  # as macOS lists files
OUTSIDE = (
    "../x",
    "../../mine/x",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "..",
    ".x",
    "",
    " ",
    "a\0b",
    "a\nb",
)


@pytest.fixture(autouse=True)
def no_nnunet_variables(monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)


def write_dataset(folder: Path) -> Path:
    """Six training cases case_0 to case_5 and a test case."""
    mask = np.zeros((32, 40), np.uint8)
    mask[8:16, 8:20] = 1
    with RawDatasetWriter(folder, RGB, {"background": 0, "polyp": 1}) as writer:
        for k in range(6):
            writer.add_training_case(f"case_{k}", np.full((32, 40, 3), 20 * k + 9, np.uint8), mask)
        writer.add_test_case("test_0", np.full((32, 40, 3), 200, np.uint8), mask)
    return folder


def rename_case(folder: Path, old: str, new: str) -> None:
    (folder / "imagesTr" / f"{old}_0000.png").rename(folder / "imagesTr" / f"{new}_0000.png")
    (folder / "labelsTr" / f"{old}.png").rename(folder / "labelsTr" / f"{new}.png")


def listed(folder: Path, **ids: str) -> None:
    """Give dataset.json a table of cases, under other `ids` where given."""
    cases = {
        ids.get(f"case_{k}", f"case_{k}"): {
            "images": [f"imagesTr/case_{k}_0000.png"],
            "label": f"labelsTr/case_{k}.png",
        }
        for k in range(6)
    }
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": cases}))


def refused(message: str, function, *arguments, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case_id", [*OUTSIDE, "x" * 201, None, 3, ["a"], "\ud800"])
def test_ids_that_lead_elsewhere_are_refused(case_id):
    refused("found the case id", check_case_id, case_id, Path("dataset.json"))


@pytest.mark.parametrize("case_id", ["case_00001", "a..b", "a b", "Zoë", "3+x-1.5", "患者1"])
def test_usual_ids_pass(case_id):
    assert check_case_id(f" {unicodedata.normalize('NFD', case_id)}\t", Path("x")) == case_id


@pytest.mark.parametrize("path", ["", ".", "..", "../x", "a/../../x", "/x", None, 3, "a\0"])
def test_recorded_paths_stay_below_their_folder(path):
    refused("found the path", check_inside, path, Path("stages/a.json"))
    assert check_inside("a/b.txt", Path("stages/a.json")) == "a/b.txt"


@pytest.mark.parametrize("other", ["p1", "P 1 ", "P\u00a01", "\uff30 1", "P  1"])
def test_lookalikes_are_refused(other):
    name = "P1" if other == "p1" else "P 1"
    if other != "P 1 ":
        refused(r"found the groups .* and ", refuse_lookalikes, [name, "P2", other], "groups", Path("x.csv"))
    assert match_key(name) == match_key(other)
    refuse_lookalikes(["P1", "P2", "P1", "P 1"], "groups", Path("x.csv"))


@pytest.mark.parametrize("case_id", ["../../../mine/labelsTr/x", "a\\b", "", "case_1 ", "CASE_1"])
@pytest.mark.parametrize("max_side", [None, 32])
def test_nothing_is_written_outside_for_an_id_of_the_table(tmp_path, case_id, max_side):
    source = write_dataset(tmp_path / "raw" / "Dataset600_R")
    listed(source, case_0=case_id)
    (tmp_path / "mine" / "labelsTr").mkdir(parents=True)
    kept = tmp_path / "mine" / "labelsTr" / "x.png"
    kept.write_bytes(b"mine")
    out = tmp_path / "o" / "Dataset700_X"
    options = ConvertSubset(dataset=str(source), out=out, max_side=max_side)
    refused("dataset.json: found the case id", lambda: convert_subset(options))
    assert kept.read_bytes() == b"mine" and not out.parent.exists()


def test_files_of_the_table_may_lie_elsewhere(tmp_path, monkeypatch):
    source = write_dataset(tmp_path / "raw" / "Dataset600_R")
    listed(source, case_0=f" {DECOMPOSED}")
    path = source / "dataset.json"
    content = json.loads(path.read_text())
    (source / "imagesTr" / "case_1_0000.png").rename(tmp_path / "elsewhere.png")
    content["dataset"]["case_1"]["images"] = ["$PLACE/elsewhere.png"]
    path.write_text(json.dumps(content))
    monkeypatch.setenv("PLACE", str(tmp_path))
    out = tmp_path / "Dataset700_X"
    convert_subset(ConvertSubset(dataset=str(source), out=out))
    made = read_dataset(out)
    assert [case.id for case in made.training_cases] == sorted(
        [COMPOSED, *(f"case_{k}" for k in range(1, 6))]
    )
    assert (out / "imagesTr" / "case_1_0000.png").samefile(tmp_path / "elsewhere.png")


@pytest.mark.parametrize("case_id", ["../x", "/etc/x", "a\\b", 3, None])
@pytest.mark.parametrize("name", ["splits_final", "groups", "test_sets"])
def test_odd_ids_in_lists_are_one_line(tmp_path, name, case_id):
    folder = write_dataset(tmp_path / "Dataset600_R")
    content = {
        "splits_final": [{"train": ["case_0", case_id], "val": ["case_1"]}],
        "groups": {"case_0": "P0", f"{case_id}" if case_id != 3 else " ": "P1"},
        "test_sets": {"Kvasir": ["test_0", case_id]},
    }[name]
    (folder / f"{name}.json").write_text(json.dumps(content))
    dataset = read_dataset(folder)
    read = {"splits_final": lambda: read_splits(dataset), "groups": lambda: dataset.groups}
    refused(f"{name}.json: found", read.get(name, lambda: dataset.test_sets))


def test_lists_name_files_in_the_other_unicode_form_or_with_spaces(tmp_path):
    """Files of macOS, lists of a spreadsheet: read as one case, written under one name."""
    folder = write_dataset(tmp_path / "raw" / "Dataset600_R")
    rename_case(folder, "case_0", DECOMPOSED)
    rename_case(folder, "case_1", "case 1 ")
    ids = [COMPOSED, "case 1", "case_2", "case_3", "case_4", "case_5"]
    splits = [{"train": [f"{ids[0]} ", *ids[3:]], "val": ["case 1", "case_2"]}]
    groups = {ids[0]: "P0 ", "case 1": DECOMPOSED, "case_2": COMPOSED}
    for name, content in (("splits_final", splits), ("groups", groups), ("test_sets", {" A": ["test_0 "]})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    dataset = read_dataset(folder)
    assert sorted(case.id for case in dataset.training_cases) == sorted(ids)
    assert all(case.label is not None and case.label.is_file() for case in dataset.training_cases)
    assert read_splits(dataset) == [{"train": [COMPOSED, *ids[3:]], "val": ["case 1", "case_2"]}]
    assert [dataset.groups[case_id] for case_id in ids[:3]] == ["P0", COMPOSED, COMPOSED]
    assert dataset.test_sets == {"A": ["test_0"]}
    convert_subset(ConvertSubset(dataset=str(folder), out=tmp_path / "Dataset601_R"))
    assert (tmp_path / "Dataset601_R" / "labelsTr" / f"{COMPOSED}.png").is_file()
    assert read_splits(read_dataset(tmp_path / "Dataset601_R")) == read_splits(dataset)
    # Predictions have the names of the images, as nnU-Net saw them.
    evaluate(
        Evaluate(
            str(folder),
            (str(folder / "labelsTr"),),
            tmp_path / "scores",
            labels=folder / "labelsTr",
            processes=1,
        )
    )
    with (tmp_path / "scores" / "per_case.csv").open(encoding="utf-8") as file:
        scores = {row["case"]: row["Dice"] for row in csv.DictReader(file)}
    assert scores == dict.fromkeys(ids, "1.0")


@pytest.mark.parametrize("other", ["CASE_0", "case_0 "])
def test_files_that_another_file_system_holds_once_are_refused(tmp_path, other):
    folder = write_dataset(tmp_path / "Dataset600_R")
    rename_case(folder, "case_1", other)
    refused("found the case ids '.*' and '.*', expected .* differ", read_dataset, folder)


def test_groups_that_differ_in_letter_case_are_refused(tmp_path):
    folder = write_dataset(tmp_path / "Dataset600_R")
    (folder / "groups.json").write_text(json.dumps({"case_0": "Patient 1", "case_1": "patient 1"}))
    refused("groups.json: found the groups 'Patient 1' and 'patient 1'", lambda: read_dataset(folder).groups)


def test_a_damaged_journal_deletes_nothing_outside(tmp_path):
    out, kept = tmp_path / "Dataset600_R", tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(ZeroDivisionError), resumable_folder(out, {}) as folder:
        journal = Journal(folder, {"a": [1]}, dict)
        (folder / "a.txt").write_text("a")
        journal.add("a", [folder / "a.txt"], {})
        raise ZeroDivisionError
    record = tmp_path / ".Dataset600_R.partial" / ".journal" / "a.json"
    whole = record.read_text()
    whole_one = {"stamp": [1], "files": ["a.txt"], "facts": {}}
    for content, words in (
        ([], "array, expected object"),
        ({}, "no key stamp, expected one"),
        (whole_one | {"files": ["../kept.txt"]}, "the path '../kept.txt'"),
        (whole_one | {"files": "a.txt"}, "str at files, expected array"),
        (whole_one | {"files": [None]}, "null at files"),
        (whole_one | {"stamp": 1}, "int at stamp, expected array"),
        (whole_one | {"facts": None}, "null at facts, expected object"),
    ):
        record.write_text(json.dumps(content))
        damaged = pytest.raises(UserError, match=rf"a.json: found {words}.*; remove that file")
        with damaged, resumable_folder(out, {}) as folder:
            Journal(folder, {"a": [1]}, dict)
    record.write_text(whole)
    with resumable_folder(out, {}) as folder:
        assert len(Journal(folder, {"a": [1]}, dict)) == 1
        (folder / "a.txt").unlink()
        assert len(Journal(folder, {"a": [1]}, dict)) == 0  # its file is gone
    assert kept.read_text() == "mine" and out.is_dir()
