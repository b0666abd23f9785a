"""Files that trainings and generations leave: whatever is wrong in one is a line that names file and key."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_records import PICTURES, small_base, small_row, small_run, small_synthesis

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json
from law_synth.leaks import cases_behind_base, refuse_informed_base
from law_synth.records import base, hard_cases, run, synthetic
from law_synth.records.hard_cases import HardCases, write_hard_cases

CASES = ["a", "b"]
HARD = HardCases(1, "Dataset001_Real", 0, "judge", "0", {"a": 0.5, "b": 1.0})
RUN = small_run(train_cases=CASES[:1], monitor_cases=CASES[1:], configurations_hash="c")
SOURCE = synthetic.SourceDataset(name="Dataset001_Real", origin="Dataset000_All", folder="nowhere")
SYNTHESIS = replace(small_synthesis(RUN, SOURCE, nesting=[[1, 2]]), hard_cases=HARD)


class Format(NamedTuple):
    """A file's name, how it is written and read, and its keys that may be missing."""

    name: str
    write: Any
    read: Any
    optional: tuple[str, ...] = ()


def write_manifest(folder: Path) -> None:
    synthetic.write_rows(folder / synthetic.MANIFEST, [small_row("law_000000")])


def write_chunk(folder: Path) -> None:
    synthetic.write_chunk(folder, 0, {"imagesTr/law_000000_0000.png": b""}, {}, [small_row("law_000000")])


TRAINED = small_base(
    "Dataset001_Real", CASES, dataset_origin="Dataset000_All", view=PICTURES, held_back_cases=["b"]
)
FORMATS = [
    Format(
        run.CONFIG, lambda folder: run.write_config(folder, RUN), run.read_config, ("configurations_hash",)
    ),
    Format(
        base.CONFIG,
        lambda folder: base.write_base_config(folder, TRAINED),
        base.read_base_config,
        ("fold", "held_back_cases", "train_cases", "dataset_origin", "view"),
    ),
    Format(
        synthetic.DESCRIPTION,
        lambda folder: (folder / synthetic.DESCRIPTION).write_text(json.dumps(SYNTHESIS.json)),
        synthetic.read_synthesis,
        ("hard_cases", "origin", "nesting", "configurations_hash"),
    ),
    Format(synthetic.MANIFEST, write_manifest, synthetic.read_rows, ("source_group",)),
    Format(".generation/chunk_000000.json", write_chunk, synthetic.read_chunks, ("source_group",)),
    Format(
        "hard_cases.json",
        lambda folder: write_hard_cases(folder / "hard_cases.json", HARD),
        lambda folder: hard_cases.read_hard_cases(folder / "hard_cases.json", HARD.dataset, 0, CASES),
    ),
]
BY_NAME = {form.name: form for form in FORMATS}
WRONG = {"a text": "x", "a number": 0.5, "a list": [[]], "a table": {"x": []}, "null": None, "yes": True}


def places(content: Any, above: tuple = ()) -> list[tuple]:
    """Keys of every table in a file, and of the tables in its tables and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = [(*above, key) for key in content] if isinstance(content, dict) else []
    for key, value in items:
        if isinstance(value, (dict, list)):
            found += places(value, (*above, key))
    return found


def changed(content: Any, place: tuple, change: Any) -> Any:
    content = copy.deepcopy(content)
    table = content
    for key in place[:-1]:
        table = table[key]
    change(table, place[-1])
    return content


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_record_comes_back_as_it_was_written(form, tmp_path):
    """Byte for byte, and with unknown keys of later versions, too."""
    form.write(tmp_path)
    path = tmp_path / form.name
    before, found = path.read_bytes(), form.read(tmp_path)
    path.unlink()
    form.write(tmp_path)
    assert path.read_bytes() == before
    path.write_text(json.dumps(json.loads(before) | {"of a later version": 1}))
    assert form.read(tmp_path) == found


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_missing_key_is_named(form, tmp_path):
    form.write(tmp_path)
    path = tmp_path / form.name
    content = json.loads(path.read_text())
    for place in places(content):
        path.write_text(json.dumps(changed(content, place, dict.__delitem__)))
        if place[-1] in form.optional or is_free(place):
            refused_or_read(form, tmp_path)
            continue
        with pytest.raises(UserError) as error:
            form.read(tmp_path)
        text = f"{error.value}"
        assert Path(form.name).name in text and "\n" not in text
        assert place[-1] in text or "found format None" in text or "train_cases without dataset" in text, (
            place
        )


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_wrong_kind_is_one_line(form, wrong, tmp_path):
    """A value of another kind is refused in a line that names file and key; what fits is read."""
    form.write(tmp_path)
    path = tmp_path / form.name
    content = json.loads(path.read_text())
    refused = 0
    for place in places(content):
        path.write_text(
            json.dumps(changed(content, place, lambda table, key: table.update({key: WRONG[wrong]})))
        )
        if error := refused_or_read(form, tmp_path):
            refused += 1
            named = {f"{part}" for part in place} | {"..."}  # msgspec does not name a free key
            assert any(name in error for name in named), (place, error)
    assert refused > 1


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "3", '"x"', "[null]", "\x00", "[" * 9999])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_what_is_no_table_is_one_line(form, content, tmp_path):
    form.write(tmp_path)
    (tmp_path / form.name).write_text(content + "\n")
    assert refused_or_read(form, tmp_path)


def is_free(place: tuple) -> bool:
    """Whether anything may stand there: the content of a table of names."""
    tables = ("options", "versions", "classes", "slices", "dice", "scores", "files")
    return any(part in tables for part in place[:-1]) and place[:2] != ("options", place[-1])


def refused_or_read(form: Format, folder: Path) -> str:
    """The one line of a refusal, empty where the file is read; any other exception fails the test."""
    try:
        form.read(folder)
    except UserError as error:
        assert "\n" not in f"{error}" and Path(form.name).name in f"{error}"
        return f"{error}"
    return ""


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        (run.CONFIG, ("format",), 1, "found format 1, expected 2; use the version of law-order"),
        (run.CONFIG, ("size",), "64", "found str at size, expected int"),
        (run.CONFIG, ("train_cases",), "a", "found str at train_cases, expected array"),
        (run.CONFIG, ("train_cases",), ["a/b"], "found the case id 'a/b'"),
        (run.CONFIG, ("view", "window", "low"), 3, "found int at view.window.low, expected array"),
        (run.CONFIG, ("view", "axis"), 0, "found slices or view.axis without the other"),
        (base.CONFIG, ("format",), 7, "found format 7, expected 1"),
        (base.CONFIG, ("train_cases", 0), "../x", "found the case id '../x'"),
        (synthetic.DESCRIPTION, ("run", "format"), 1, "found format 1 at run, expected 2"),
        (synthetic.DESCRIPTION, ("run", "monitor_cases"), ["/x"], "found the case id '/x'"),
        (synthetic.DESCRIPTION, ("options", "samples"), None, "found null at options.samples, expected int"),
        (synthetic.DESCRIPTION, ("hard_cases", "dice"), {"..": 1}, "found the case id '..'"),
        (synthetic.MANIFEST, ("case",), "../x", "found the case id '../x'"),
        (synthetic.MANIFEST, ("kept",), "yes", ", line 1: found str at kept, expected bool"),
        (".generation/chunk_000000.json", ("files",), {"../x": "0"}, "found the path '../x'"),
        ("hard_cases.json", ("dice", "a"), 1.5, "found another value at dice"),
    ],
)
def test_what_is_wrong_is_said(name, place, value, words, tmp_path):
    form = BY_NAME[name]
    form.write(tmp_path)
    path = tmp_path / name
    content = changed(json.loads(path.read_text()), place, lambda table, key: table.__setitem__(key, value))
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        form.read(tmp_path)
    assert words in f"{error.value}"


def test_runs_of_the_version_before_are_read(tmp_path):
    """They had one hash, and a data set made with them says so byte for byte."""
    old = replace(RUN, configurations_hash=None)
    run.write_config(tmp_path, old)
    assert "configurations_hash" not in json.loads((tmp_path / run.CONFIG).read_text())
    assert run.read_config(tmp_path) == old
    assert "configurations_hash" not in small_synthesis(old, SOURCE).json["run"]


def test_a_volume_without_its_slices_is_refused(tmp_path):
    config = replace(RUN, view=replace(PICTURES, axis=0), slices={"a": [1]})
    run.write_config(tmp_path, config)
    with pytest.raises(UserError, match="found no slices of b, expected those that were seen"):
        run.read_config(tmp_path)


def test_who_a_base_has_seen(tmp_path):
    """Nobody of a data set, known cases of it, or others of whom nobody here can tell."""
    assert cases_behind_base("owner/model", "Dataset000_All") == set()
    base.write_base_config(tmp_path, small_base(None, None))
    assert cases_behind_base(f"{tmp_path}", "Dataset000_All") == set()
    base.write_base_config(tmp_path, TRAINED)
    assert cases_behind_base(f"{tmp_path}", "Dataset000_All") == {"a", "b"}
    assert cases_behind_base(f"{tmp_path}", "Dataset001_Real") is None


def test_a_base_that_has_seen_others_is_refused(tmp_path):
    class Source(NamedTuple):
        origin: str

    base.write_base_config(tmp_path, TRAINED)
    source = Source("Dataset000_All")
    refuse_informed_base(f"{tmp_path}", source, {"a", "b", "c"}, "training cases", "make one")
    with pytest.raises(UserError, match=r"trained on b \(1 such\), expected only training cases; make one"):
        refuse_informed_base(f"{tmp_path}", source, {"a"}, "training cases", "make one")


def test_rows_are_written_as_before(tmp_path):
    """The order of the keys is part of the format: data sets of two versions can be compared."""
    row = small_row("law_000001")
    synthetic.write_rows(tmp_path / synthetic.MANIFEST, [row, small_row("law_000000")])
    lines = (tmp_path / synthetic.MANIFEST).read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["law_000000", "law_000001"]
    assert lines[1] == json.dumps(as_json(row)) and list(json.loads(lines[1]))[:3] == [
        "case",
        "index",
        "chunk",
    ]
