"""JSON as types: whatever is wrong is one line that names the file, the place and what was expected."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.json_files import as_json, converted, parse_json, read_json, read_lenient_json
from dataset_conversion.system.options import Range, check_ranges


@dataclass(frozen=True)
class Part:
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Record:
    fold: int | Literal["all"]
    cases: list[str]
    part: Part | None = None


GOOD = b'{"fold": "all", "cases": ["a"], "part": {"name": "x", "values": [1, 2.5]}, "unknown": 1}'


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(GOOD)
    record = read_json(path, Record)
    assert record == Record("all", ["a"], Part("x", (1.0, 2.5)))
    assert converted(as_json(record), Record, path) == record


def test_numbers_of_numpy_are_written_as_those_of_python():
    """nnU-Net's default folds hold its texts, means and Dice its numbers."""
    record = Record(np.int64(2), [np.str_("a")], Part("x", (np.float32(0.5),)))
    assert json.dumps(as_json(record)) == (
        '{"fold": 2, "cases": ["a"], "part": {"name": "x", "values": [0.5]}}'
    )
    with pytest.raises(TypeError):
        as_json({"x": object()})


def test_files_of_nnunet_may_hold_nan(tmp_path):
    path = tmp_path / "dataset_fingerprint.json"
    path.write_text('{"mean": NaN}')
    assert math.isnan(read_lenient_json(path, dict[str, float])["mean"])
    with pytest.raises(UserError, match=r"found float at .*, expected str; restore the file"):
        read_lenient_json(path, dict[str, str])
    path.write_text("{")
    with pytest.raises(UserError, match="malformed"):
        read_lenient_json(path, dict)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "malformed"),
        (GOOD[:30], "malformed"),
        (b"\xff\xfe{", "malformed"),
        (b"null", "found null, expected object"),
        (b"[]", "found array, expected object"),
        (b'{"fold": 1}', "found no key cases, expected one"),
        (b'{"fold": 1.5, "cases": []}', "at fold"),
        (b'{"fold": "none", "cases": []}', "found another value at fold"),
        (b'{"fold": 0, "cases": "a"}', "found str at cases, expected array"),
        (b'{"fold": 0, "cases": ["a", 3]}', "found int at cases[1], expected str"),
        (b'{"fold": 0, "cases": [], "part": {"name": null, "values": []}}', "found null at part.name"),
        (b'{"fold": 0, "cases": [], "part": {"name": "x", "values": [NaN]}}', "malformed"),
    ],
)
def test_what_is_wrong_is_one_line(content, words):
    with pytest.raises(UserError) as error:
        parse_json(content, Record, "record.json", "make it anew")
    text = f"{error.value}"
    assert text.startswith("record.json: ") and words in text and text.endswith("; make it anew")
    assert "\n" not in text and "$" not in text


def test_endless_nesting_is_one_line():
    with pytest.raises(UserError, match="malformed"):
        parse_json(b"[" * 100_000, list, "record.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: not found"):
        read_json(tmp_path / "none.json", Record)
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path, Record)


@dataclass(frozen=True)
class Options:
    batch_size: Annotated[int, Range(1)] = 4
    share: Annotated[float, Range(0, 1, above=True)] = 0.5
    limits: Annotated[tuple[float, ...] | None, Range(-1, 1)] = None
    free: int = -7


def test_ranges_stand_beside_their_options():
    check_ranges(Options())
    check_ranges(Options(share=1, limits=(-1, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(batch_size=0), "found --batch-size 0, expected 1 or more; change it"),
        (Options(share=0), "found --share 0, expected above 0, at most 1; change it"),
        (Options(share=math.nan), "found --share nan, expected above 0, at most 1; change it"),
        (Options(limits=(0, 2)), "found --limits 2, expected -1 to 1; change it"),
    ],
)
def test_a_number_outside_its_range_is_one_line(options, message):
    with pytest.raises(UserError) as error:
        check_ranges(options)
    assert f"{error.value}" == message
