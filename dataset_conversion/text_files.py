"""Lists and tables that people type or export, read the same way everywhere."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dataset_conversion.user_error import UserError

# Spaces and characters that no editor shows: zero-width ones, marks of writing direction, byte order marks.
UNSEEN_AT_ENDS = re.compile(r"^[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+$")


def tidy_name(text: str) -> str:
    """A name without unseen characters at its ends, in Unicode's composed form (NFC).

    Two spellings that look alike are then equal: `P1` and `P1 `, and both forms of `é`.
    """
    return unicodedata.normalize("NFC", UNSEEN_AT_ENDS.sub("", text))


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, each as `tidy_name` leaves it, without empty ones. UserError: as `read_text`."""
    lines = map(tidy_name, io.StringIO(read_text(path), newline=None))
    return [line for line in lines if line]


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file by the names in its first line, all as `tidy_name` leaves them, without blank rows.

    UserError: as `read_text`; malformed; one of `columns` is not there or a row has no value in it; a row has
    more values than there are columns; a value spans several lines, as after a quote that is not closed.
    """
    wanted = ",".join(columns)
    rows = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    table: list[dict[str, str]] = []
    try:
        names = [tidy_name(name) for name in next(rows, [])]
        if any(names.count(column) != 1 for column in columns):
            raise UserError(
                f"{path}: found {_shown(names)} in the first line, expected columns {wanted}, parted by "
                "commas; correct the file"
            )
        for row in rows:
            values = [tidy_name(value) for value in row]
            if not any(values):
                continue
            named = dict(zip(names, values, strict=False))
            has_all = all(named.get(column) for column in columns)
            if (
                not has_all
                or any(values[len(names) :])
                or any(re.search("[\r\n]", value) for value in values)
            ):
                raise UserError(
                    f"{path}: found {_shown(row)} in line {rows.line_num}, expected columns {wanted} with a "
                    "value for each on that line; correct it"
                )
            table.append(named)
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read ({error} in line {rows.line_num}), expected columns {wanted}; correct it"
        ) from error
    return table


def read_text(path: Path) -> str:
    """A whole text file. UserError: not there or unreadable, not UTF-8 (a byte order mark may be there)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a text file; check the path"
        ) from error
    try:
        text = content.decode("utf-8-sig")
        place = text.find("\0")  # in UTF-16 without a byte order mark
        before = text[:place]
    except UnicodeDecodeError as error:
        place, before = error.start, content[: error.start].decode("utf-8", errors="replace")
    if place >= 0:
        raise UserError(
            f"{path}: found other text than UTF-8 in line {before.count(chr(10)) + 1}, expected UTF-8; save "
            "it anew with that encoding (Excel calls it CSV UTF-8)"
        )
    return text


def _shown(row: Sequence[str]) -> str:
    shown = f"{row}"
    return shown if len(shown) <= 100 else f"{shown[:100]} ..."
