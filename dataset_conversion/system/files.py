"""Files of any kind: written as a whole or not at all, linked, hashed; lists and tables of text read."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_conversion.system.errors import UserError, writing
from dataset_conversion.system.names import tidy_name

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 1 << 20  # bytes; a real UNet's weights have 3.4 GB


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a hidden name of its own, then rename; a file with this very content is left alone.

    Several processes may write the same file at the same time. UserError: as `writing`.
    """
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link where the file system can, else copy, under a hidden name first; `target` may be there."""
    if target.is_file():
        return
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    source = source.resolve()  # never a link to a link
    try:
        with contextlib.suppress(OSError):  # another file system, or one without hard links
            os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming onto a link to the same file leaves both


def hash_file(path: Path) -> str:
    """sha256 of a file's content. UserError: it cannot be read."""
    digest = hashlib.sha256()
    feed(digest, path)
    return digest.hexdigest()


def feed(digest: _Hash, path: Path) -> None:
    """Add a file's content to a digest. UserError: it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a file; correct the path"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty, each as `tidy_name` leaves it. UserError: as `read_text`."""
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
                f"{path}: found {_shown(names)} in the first line, expected columns {wanted}, "
                "separated by commas; correct the file"
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
            f"{path}: found text that is not UTF-8 in line {before.count(chr(10)) + 1}, expected UTF-8; save "
            "it with that encoding (Excel calls it CSV UTF-8)"
        )
    return text


def _shown(row: Sequence[str]) -> str:
    shown = f"{row}"
    return shown if len(shown) <= 100 else f"{shown[:100]} ..."
