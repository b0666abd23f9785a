"""Lists and tables that people type: what they mean, and one line for what cannot be read."""

from __future__ import annotations

import unicodedata

import pytest

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import read_lines, read_table
from dataset_conversion.system.names import tidy_name

COLUMNS = ("case", "group")
LONG = "x" * 200_000  # more than the csv module takes in one value


def test_names_that_look_alike_are_equal(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    assert composed != decomposed
    table = tmp_path / "groups.csv"
    table.write_text(
        "case , group,note\na,P 1 \nb,\u00a0P 1\u200b,seen\n\n , ,\n"
        f'c,{decomposed},\nd,{composed}\ne, "P,1"\n',
        encoding="utf-8-sig",
    )
    rows = read_table(table, COLUMNS)
    expected = {"a": "P 1", "b": "P 1", "c": composed, "d": composed, "e": "P,1"}
    assert {row["case"]: row["group"] for row in rows} == expected
    assert rows[1]["note"] == "seen"
    assert tidy_name("\ufeff P1\u3000") == "P1"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems(tmp_path, line_end):
    path = tmp_path / "list.txt"
    path.write_bytes(line_end.join(["case,group", "a,P1 ", "", " b,P2"]).encode())
    assert read_lines(path) == ["case,group", "a,P1", "b,P2"]
    assert read_table(path, COLUMNS) == [{"case": "a", "group": "P1"}, {"case": "b", "group": "P2"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,group\na,Müller\n".encode("latin-1"), "text that is not UTF-8 in line 2"),
        ("case,group\na,P1\n".encode("utf-16"), "text that is not UTF-8 in line 1"),
        ("case,group\na,P1\n".encode("utf-16-le"), "text that is not UTF-8 in line 1"),
        (f"case,group\na,{LONG}\n".encode(), "field larger than field limit .131072. in line 2"),
        (b"case;group\na;P1\n", "found .'case;group'. in the first line, expected columns case,group"),
        (b"case,group,group\na,P1,P1\n", "expected columns case,group"),
        (b"case,group\na,P1,P2\n", "found .'a', 'P1', 'P2'. in line 2"),
        (b"case,group\na\n", "found .'a'. in line 2"),
        (b"case,group\na, \n", "in line 2, expected columns case,group with a value for each"),
        (b'case,group\na,"P1\nb,P2\nc,P3\n', "expected columns case,group with a value for each"),
        (b"", "in the first line, expected columns case,group"),
    ],
)
def test_other_tables_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "groups.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"groups.csv: .*{message}") as error:
        read_table(path, COLUMNS)
    assert "\n" not in f"{error.value}"
    assert len(f"{error.value}") < 400 + len(f"{path}")


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match=r"cannot be read .*expected a text file"):
            read_lines(path)
